"""TOML files: variables of the environment filled in, and what is wrong with them in sentences."""

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def read(path: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a file says; `${NAME:-default}` in a text comes from the environment.

    A variable that is empty counts as not set. Raises `OSError` or `ValueError`.
    """
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: _filled_in(each, key, environment) for key, each in written.items()}


def _filled_in(value: Any, where: str, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled_in(each, f"{where}.{key}", environment) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled_in(each, where, environment) for each in value]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name: str = found["name"]
        text = environment.get(name) or found["default"]
        if text is None:
            raise ValueError(
                f"{where}: the variable {name} is not set; set it, or write ${{{name}:-a default}}"
            )
        return text

    return _VARIABLE.sub(variable, value)


def faults(error: ValidationError, known: Collection[str]) -> Iterator[str]:
    """Where each fault is, and what to do; `known` are the keys that there are."""
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"])
        yield f"{where}: {_advice(fault, known)}".removeprefix(": ")


def _advice(fault: ErrorDetails, known: Collection[str]) -> str:
    match fault["type"]:
        case "missing":
            return "is missing; set it"
        case "extra_forbidden":
            near = get_close_matches(str(fault["loc"][-1]), known, n=1)
            return f"no such key; did you mean {near[0]!r}?" if near else "no such key; take it out"
        case "value_error":
            return str(fault["ctx"]["error"])
        case _:
            return f"{fault['msg']}, not {fault['input']!r:.100}"
