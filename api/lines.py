"""A batch's input, checked line by line while it arrives; every problem names its line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import orjson

from api.parse import deeper, validate
from api.wire.chat import ChatCompletionRequest
from shared import features, prices
from shared.batch_lines import BOM
from shared.catalog import Catalog, Model
from shared.errors import InvalidRequest, ServiceError

MOST_LINES: Final = 100_000
MOST_ERRORS: Final = 100
"""Problems that are listed; the rest is only counted."""
LONGEST_ID: Final = 64
DEEPEST: Final = 65
"""Levels of a line: those of a request's body, and one around it."""
ENDPOINT: Final = "/v1/chat/completions"


@dataclass(eq=False)
class Problem(Exception):
    """What is wrong with a line, as OpenAI's batches list it."""

    code: str
    message: str
    param: str | None = None


@dataclass
class Report:
    """What there is to say about an input."""

    lines: int = 0
    """Requests, good or bad; blank lines are none."""
    problems: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    """The first hundred: `code`, `line`, `message`, `param`."""
    models: set[str] = field(default_factory=set)
    """What its requests ask for."""

    @property
    def summary(self) -> str | None:
        """The first problem in a sentence, and how many there are; None when all is well."""
        if not self.errors:
            return None
        first = self.errors[0]
        where = f"Line {first['line']}: " if first["line"] else ""
        more = f" ({self.problems:,} problems in all.)" if self.problems > 1 else ""
        return f"{where}{first['message']}{more}"

    def add(self, line: int | None, problem: Problem) -> None:
        """Count a problem, and list it if it is one of the first."""
        self.problems += 1
        if len(self.errors) < MOST_ERRORS:
            self.errors.append({
                "code": problem.code,
                "line": line,
                "message": problem.message,
                "param": problem.param,
            })  # fmt: skip


class Checker:
    """Takes an input in pieces of any size. Of a line over `longest` bytes it keeps nothing."""

    def __init__(self, check_body: Callable[[dict[str, Any]], None], *, longest: int) -> None:
        self.report = Report()
        self._check_body = check_body
        self._longest = longest
        self._begun = bytearray()
        """A line whose end is still to come."""
        self._too_long = False
        self._number = 0
        self._custom_ids: set[str] = set()
        self._full = False

    def feed(self, piece: bytes) -> None:
        """Check the lines that end in this piece. This is work for a thread."""
        *whole, begun = piece.split(b"\n")
        for line in whole:
            self._extend(line)
            self._end_line()
        self._extend(begun)

    def end(self) -> Report:
        """The input is complete."""
        self._end_line()
        if self.report.lines == 0:
            self.report.add(None, Problem("empty_file", "There is no request in this file."))
        return self.report

    def _extend(self, piece: bytes) -> None:
        if len(self._begun) + len(piece) > self._longest:
            self._too_long = True
        if self._too_long or self._full:
            self._begun.clear()
        else:
            self._begun += piece

    def _end_line(self) -> None:
        line, too_long = bytes(self._begun), self._too_long
        self._begun.clear()
        self._too_long = False
        self._number += 1
        if self._full or not (too_long or line.strip()):
            return
        if self.report.lines == MOST_LINES:
            self._full = True
            said = f"A file may have {MOST_LINES:,} requests at most."
            self.report.add(self._number, Problem("too_many_requests_in_file", said))
            return
        self.report.lines += 1
        try:
            if too_long:
                raise Problem("invalid_request", f"The line is over {self._longest:,} bytes.")
            self._check(_parsed(line.removeprefix(BOM)))
        except Problem as problem:
            self.report.add(self._number, problem)

    def _check(self, line: dict[str, Any]) -> None:
        for name in ("custom_id", "method", "url", "body"):
            _require(line, name)
        self._check_id(line["custom_id"])
        if line["method"] != "POST":
            raise Problem("invalid_request", "Invalid 'method': should be 'POST'.", "method")
        if line["url"] != ENDPOINT:
            raise Problem("mismatched_url", f"Invalid 'url': should be '{ENDPOINT}'.", "url")
        body = line["body"]
        if not isinstance(body, dict):
            raise Problem("invalid_request", "Invalid 'body': should be an object.", "body")
        for name in ("model", "messages"):
            _require(body, name, "body.")
        try:
            self._check_body(body)
            self.report.models.add(body["model"])
        except ServiceError as error:
            code = "invalid_request" if type(error) is InvalidRequest else error.code
            param = error.param or "body"
            if not param.startswith("body"):
                param = f"body.{param}"
            raise Problem(code, error.message, param) from None

    def _check_id(self, custom_id: object) -> None:
        if not _is_id(custom_id):
            said = f"Invalid 'custom_id': should be 1 to {LONGEST_ID} printable characters."
            raise Problem("invalid_request", said, "custom_id")
        if custom_id in self._custom_ids:
            said = f"The 'custom_id' {custom_id!r} is in an earlier line already."
            raise Problem("duplicate_custom_id", said, "custom_id")
        self._custom_ids.add(custom_id)


def body_check(
    catalog: Catalog, check_model: Callable[[Model], None]
) -> Callable[[dict[str, Any]], None]:
    """What holds a line's body to the same as a request of its own; it raises `ServiceError`."""

    def check(body: dict[str, Any]) -> None:
        asked = validate(ChatCompletionRequest, body, within="body")
        if asked.stream:
            raise InvalidRequest("A line of a batch cannot stream.", param="body.stream")
        model = catalog.find(asked.model)
        check_model(model)
        sent = asked.upstream_body(body)
        least = prices.least_prompt_tokens(sent, room=model.context_window)
        catalog.chain(asked.model, features.used(sent), tokens=least)

    return check


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        said = f"This is not valid JSON: {error.msg}, at character {error.pos + 1}."
        raise Problem("invalid_json_line", said) from None
    if not isinstance(parsed, dict):
        raise Problem("invalid_json_line", "A line should be a JSON object.")
    if line.count(b"{") + line.count(b"[") > DEEPEST and deeper(parsed, DEEPEST):
        raise Problem("invalid_request", f"The line is nested more than {DEEPEST} levels deep.")
    return parsed


def _require(found: dict[str, Any], name: str, within: str = "") -> None:
    if found.get(name) is None:
        said = f"Missing required field '{within}{name}'."
        raise Problem("missing_required_parameter", said, within + name)


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 1 <= len(value) <= LONGEST_ID and value.isprintable()
