"""A conversation in OpenAI's messages as Anthropic's: its system prompt, and turns of blocks."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from shared.errors import UpstreamRejected

Block = dict[str, Any]

UNSAID: Final = ("name", "function_call", "audio")
"""What a message can have there and not here."""
INSTRUCTIONS: Final = ("system", "developer")


def unsupported(
    field: str, why: str = "has no counterpart at this model's upstream"
) -> UpstreamRejected:
    """The refusal of a field that Anthropic's Messages API has nothing for."""
    return UpstreamRejected(f"'{field}' {why}.", param=field, code="unsupported_parameter")


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Block], list[Block]]:
    """The blocks of the system prompt, and the turns by `role` and `content`.

    Instructions are lifted out from wherever they stand, consecutive messages of one role become
    one turn, and a turn that answers tool calls begins with the results. An assistant's
    `thinking_blocks` go back verbatim; its `reasoning_content` does not, being unsigned.
    Raises `UpstreamRejected`.
    """
    system: list[Block] = []
    turns: list[Block] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        blocks = _blocks(message, where)
        if message["role"] in INSTRUCTIONS:
            system += blocks
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        if blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns or turns[0]["role"] != "user":
        raise UpstreamRejected(
            "The first of 'messages' that says something must be the user's.", param="messages"
        )
    for turn in turns:
        turn["content"].sort(key=lambda block: block.get("type") != "tool_result")
    return system, turns


def cache_control(part: Mapping[str, Any]) -> Block:
    """The cache mark of a part, whether it is Anthropic's own or OpenAI's; empty without one."""
    if mark := part.get("cache_control"):
        return {"cache_control": mark}
    mark = part.get("prompt_cache_breakpoint")
    if not isinstance(mark, dict):
        return {}
    # The times OpenAI offers are 30 minutes and more, which only the longer of the two here covers.
    longer = {"ttl": "1h"} if mark.get("ttl") else {}
    return {"cache_control": {"type": "ephemeral", **longer}}


def _blocks(message: Mapping[str, Any], where: str) -> list[Block]:
    role = message["role"]
    if role == "function":
        raise unsupported(f"{where}.role", "'function' is not known to this model; use 'tool'")
    for name in UNSAID:
        # Next to a call's id the name of the tool says nothing new.
        if message.get(name) is not None and (role, name) != ("tool", "name"):
            raise unsupported(f"{where}.{name}")
    blocks = _content(message.get("content"), f"{where}.content")
    if role == "tool":
        blocks = [_tool_result(message, blocks)]
    elif role == "assistant":
        blocks = [
            *_thinking(message, where),
            *blocks,
            *_refusal(message),
            *_tool_uses(message, where),
        ]
    if blocks:
        blocks[-1] |= cache_control(message)
    return blocks


def _content(content: str | list[dict[str, Any]] | None, where: str) -> list[Block]:
    # There, text that is empty is an error; here, it says nothing.
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    parts = [_part(part, f"{where}[{number}]") for number, part in enumerate(content or ())]
    return [block for block in parts if block.get("text") != ""]


def _part(part: dict[str, Any], where: str) -> Block:
    kind = part["type"]
    match kind:
        case "text":
            block = {"type": "text", "text": part["text"]}
        case "refusal":
            block = {"type": "text", "text": part["refusal"]}
        case "image_url":
            block = {"type": "image", "source": _image(part["image_url"]["url"], where)}
        case "file":
            block = _document(part["file"], f"{where}.file")
        case _:
            raise unsupported(where, f"is of type '{kind}', which this model cannot take")
    ours = ("type", kind, "prompt_cache_breakpoint")
    others = {name: value for name, value in part.items() if value is not None and name not in ours}
    return block | others | cache_control(part)


def _image(url: str, where: str) -> Block:
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    if (found := _data_url(url)) is None:
        raise unsupported(
            f"{where}.image_url.url", "must be an https: URL or base64 in a data: URL"
        )
    media_type, data = found
    return {"type": "base64", "media_type": media_type, "data": data}


def _document(file: Mapping[str, Any], where: str) -> Block:
    if file.get("file_data") is None:
        raise unsupported(
            f"{where}.file_id", "is unknown at this model's upstream; use 'file_data'"
        )
    data = file["file_data"]
    media_type, data = _data_url(data) or ("application/pdf", data)
    if media_type == "text/plain":
        kind, data = "text", _text(data, f"{where}.file_data")
    elif media_type == "application/pdf":
        kind = "base64"
    else:
        raise unsupported(f"{where}.file_data", "is neither a PDF nor plain text")
    block: Block = {"type": "document"}
    block["source"] = {"type": kind, "media_type": media_type, "data": data}
    if file.get("filename"):
        block["title"] = file["filename"]
    return block


def _data_url(url: str) -> tuple[str, str] | None:
    """The media type and the base64 of a `data:` URL; None when it is none, or not in base64."""
    head, comma, data = url.partition(",")
    media_type, *options = head[5:].split(";")
    if head[:5].lower() != "data:" or not comma or options[-1:] != ["base64"]:
        return None
    return media_type.lower(), data


def _text(data: str, where: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise UpstreamRejected(f"'{where}' is not UTF-8 text in base64.", param=where) from error


def _tool_result(message: Mapping[str, Any], blocks: list[Block]) -> Block:
    result: Block = {"type": "tool_result", "tool_use_id": message["tool_call_id"]}
    if blocks:
        result["content"] = blocks
    if message.get("is_error") is not None:
        result["is_error"] = message["is_error"]
    return result


def _thinking(message: Mapping[str, Any], where: str) -> list[Block]:
    blocks = message.get("thinking_blocks") or []
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        field = f"{where}.thinking_blocks"
        raise UpstreamRejected(f"'{field}' should be an array of objects.", param=field)
    return [dict(block) for block in blocks]


def _refusal(message: Mapping[str, Any]) -> list[Block]:
    refusal = message.get("refusal")
    return [{"type": "text", "text": refusal}] if refusal else []


def _tool_uses(message: Mapping[str, Any], where: str) -> list[Block]:
    uses = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        field = f"{where}.tool_calls[{number}]"
        if call["type"] != "function":
            raise unsupported(field, "is a custom tool's, which this model has not")
        use = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}
        arguments = _arguments(call["function"]["arguments"], f"{field}.function.arguments")
        uses.append(use | {"input": arguments} | cache_control(call))
    return uses


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        arguments = orjson.loads(text or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise UpstreamRejected(
            f"'{where}' is not a JSON object.", param=where, code="invalid_tool_arguments"
        )
    return arguments
