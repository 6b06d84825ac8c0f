"""Requests that OpenAI's specification allows: every feature at least once."""

from typing import Any

from tests.unit.malformed_chat import OK, SAID, message, part, tool, with_

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
CUSTOM_CALL = {"id": "call_2", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
ANSWERED = [
    *SAID,
    {"role": "assistant", "content": None, "tool_calls": [CALL, CUSTOM_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "1"}]},
]
ECHOED: dict[str, Any] = {
    "role": "assistant",
    "content": "Hello.",
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "reasoning_content": "They greet.",
}
BOTH = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}},
    {
        "type": "custom",
        "custom": {
            "name": "sql",
            "description": "Ask the database.",
            "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: A"}},
        },
    },
]
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {
        "mode": "required",
        "tools": [
            {"type": "function", "function": {"name": "weather"}},
            {"type": "custom", "custom": {"name": "sql"}},
        ],
    },
}
NULLABLE = [
    *("temperature", "top_p", "n", "stop", "max_tokens", "max_completion_tokens", "seed", "user"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "tools"),
    *("tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"),
    *("modalities", "audio", "prediction", "web_search_options", "moderation", "stream", "store"),
    *("stream_options", "service_tier", "prompt_cache_key", "prompt_cache_retention", "metadata"),
    *("safety_identifier", "reasoning_effort", "verbosity", "background", "on_disconnect"),
    "drop_unsupported",
]

WELL_FORMED: dict[str, dict[str, Any]] = {
    "the least": OK,
    "every optional field null": with_(**dict.fromkeys(NULLABLE)),
    "integers for floats": with_(temperature=1, top_p=1, presence_penalty=-2, frequency_penalty=2),
    "edges": with_(temperature=0, top_p=0, n=8, max_tokens=1, seed=-(2**63)),
    "developer and system": with_(
        messages=[
            {"role": "developer", "content": "Be brief.", "name": "house"},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            *SAID,
        ]
    ),
    "empty content": message(role="user", content=""),
    "NUL in content": message(role="user", content="a\0b"),
    "name in another script": message(role="user", content="hi", name="Zoë"),
    "tool calls and answers": with_(messages=ANSWERED, tools=BOTH),
    "an answer sent back as it came": with_(messages=[*SAID, ECHOED, *SAID]),
    "assistant parts": message(
        role="assistant",
        content=[{"type": "text", "text": "No:"}, {"type": "refusal", "refusal": "never"}],
    ),
    "assistant refusal alone": message(role="assistant", refusal="I will not."),
    "assistant audio alone": message(role="assistant", audio={"id": "audio_1"}),
    "legacy functions": with_(
        messages=[
            *SAID,
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "weather", "arguments": "{}"},
            },
            {"role": "function", "name": "weather", "content": None},
        ],
        functions=[{"name": "weather", "parameters": WEATHER}],
        function_call={"name": "weather"},
    ),
    "image by URL": part(
        type="image_url", image_url={"url": "https://example.com/cat.png", "detail": "original"}
    ),
    "image in base64": part(type="image_url", image_url={"url": "data:image/png;base64,aGk="}),
    "audio": part(type="input_audio", input_audio={"data": "aGk=", "format": "wav"}),
    "file by id": part(type="file", file={"file_id": "file-1"}),
    "file in base64": part(type="file", file={"filename": "a.pdf", "file_data": "aGk="}),
    "cache breakpoint": part(
        type="text", text="hi", prompt_cache_breakpoint={"mode": "explicit", "ttl": "12h"}
    ),
    "one stop": with_(stop="\n"),
    "four stops": with_(stop=["a", "b", "c", ""]),
    "log probabilities": with_(logprobs=True, top_logprobs=20),
    "biases": with_(logit_bias={"50256": -100, "11": 0.5}),
    "tools with every choice": with_(tools=BOTH, tool_choice="required", parallel_tool_calls=False),
    "a tool chosen": with_(
        tools=BOTH, tool_choice={"type": "function", "function": {"name": "weather"}}
    ),
    "a custom tool chosen": with_(
        tools=BOTH, tool_choice={"type": "custom", "custom": {"name": "sql"}}
    ),
    "tools allowed": with_(tools=BOTH, tool_choice=ALLOWED),
    "no tools and no choice": with_(tools=[], tool_choice="none"),
    "tool without parameters": tool(name="now"),
    "128 tools": with_(tools=tool(name="now")["tools"] * 128),
    "text": with_(response_format={"type": "text"}),
    "some JSON": with_(response_format={"type": "json_object"}),
    "JSON by a schema": with_(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": WEATHER, "strict": True},
        }
    ),
    "stream with usage": with_(
        stream=True, stream_options={"include_usage": True, "include_obfuscation": False}
    ),
    "spoken answer": with_(modalities=["text", "audio"], audio={"voice": "alloy", "format": "mp3"}),
    "a voice of one's own": with_(audio={"voice": {"id": "voice_1"}, "format": "pcm16"}),
    "prediction": with_(
        prediction={"type": "content", "content": [{"type": "text", "text": "x = 1"}]}
    ),
    "web search": with_(
        web_search_options={
            "search_context_size": "low",
            "user_location": {"type": "approximate", "approximate": {"city": "Oslo"}},
        }
    ),
    "moderation": with_(
        moderation={"model": "omni-moderation", "policy": {"input": {"mode": "block"}}}
    ),
    "caching": with_(
        prompt_cache_key="k",
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
        prompt_cache_retention="24h",
    ),
    "effort": with_(reasoning_effort="xhigh", verbosity="low", service_tier="flex"),
    "who asks": with_(user="u-1", safety_identifier="s-1"),
    "stored": with_(store=True, metadata={"k" * 64: "v" * 512, "empty": ""}),
    "ours": with_(background=True, on_disconnect="continue"),
    "dropped where it is not known": with_(drop_unsupported=True, seed=1),
    "a field of tomorrow": with_(min_p=0.1, guided_regex="a+", schema={"model_dump": None}),
}
