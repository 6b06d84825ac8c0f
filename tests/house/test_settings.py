"""Every setting is in docs/operations.md, with the process that reads it and its default."""

import importlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.settings import StoreSettings
from tests.house.repository import PACKAGES, ROOT, modules

ROW = re.compile(r"^\| `(SLUICE_\w+)` \| (.*?) \| (.*?) \| (.+?) \|$", re.MULTILINE)
UNSET = "unset"


class Variable(NamedTuple):
    """A row of the table of settings."""

    name: str
    default: str
    readers: str
    purpose: str


def kinds() -> list[type[StoreSettings]]:
    """The settings of every process; `StoreSettings` is what they all read."""
    for path in modules(*PACKAGES):
        if "Settings):" in path.read_text(encoding="utf-8"):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [StoreSettings, *_subclasses(StoreSettings)]


def documented() -> list[Variable]:
    """The rows of the table."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    return [Variable(*row) for row in ROW.findall(page)]


def test_every_setting_is_documented_and_no_other() -> None:
    """Who runs Sluice finds each variable in one table, with the processes that read it."""
    readers: dict[str, set[str]] = {}
    for kind in kinds():
        for name in kind.model_fields.keys() & kind.__annotations__.keys():
            readers.setdefault(f"SLUICE_{name.upper()}", set()).add(_process(kind))

    assert {row.name: row.readers for row in documented()} == {
        name: ", ".join(sorted(processes)) for name, processes in readers.items()
    }


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in documented()])
def test_a_documented_default_is_the_default(
    row: Variable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the table says can be put in the environment, and changes nothing."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    field = row.name.removeprefix("SLUICE_").lower()
    plain = {kind: _value(kind, field) for kind in kinds() if field in kind.model_fields}
    unset = {kind for kind, value in plain.items() if value in (None, "")}
    if row.default != UNSET:
        monkeypatch.setenv(row.name, row.default.strip("`"))

    assert (row.default == UNSET) == (unset == plain.keys())
    assert {kind: _value(kind, field) for kind in plain.keys() - unset} == {
        kind: value for kind, value in plain.items() if kind not in unset
    }


def test_every_variable_the_code_names_is_documented() -> None:
    """Also those that are not settings of a process, such as a client's."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = {
        name
        for path in modules(*PACKAGES)
        for name in re.findall(r"SLUICE_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))
    }

    assert {name for name in named if f"`{name}`" not in page} == set()


def _process(kind: type[StoreSettings]) -> str:
    """Which command reads these, as their docstring says."""
    if kind is StoreSettings:
        return "all"
    named = re.search(r"`sluice (\w+)`", kind.__doc__ or "")
    assert named, f"the docstring of {kind.__name__} names no command"
    return named[1]


def _value(kind: type[StoreSettings], field: str) -> Any:
    value = getattr(kind(), field)
    return value.resolve() if isinstance(value, Path) else value


def _subclasses(kind: type[StoreSettings]) -> list[type[StoreSettings]]:
    return [each for child in kind.__subclasses__() for each in (child, *_subclasses(child))]
