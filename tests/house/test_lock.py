"""The lock pins everything, by hash, and says nothing of where it was fetched."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.repository import ROOT

LOCKS = ("requirements.lock", "requirements-production.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_by_hash(lock: str) -> None:
    """A mirror cannot change a byte unnoticed."""
    loose = [
        entry.partition(" ")[0]
        for entry in _entries(lock)
        if not re.fullmatch(r"[\w.-]+==[^\s;]+( ;[^\\]+)?( --hash=sha256:[0-9a-f]{64})+", entry)
    ]

    assert loose == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_no_address(lock: str) -> None:
    """Everybody has a registry of their own."""
    text = (ROOT / lock).read_text(encoding="utf-8")

    assert re.findall(r"\w+://\S+|--(?:extra-)?index-url|--find-links", text) == []


def test_the_lock_meets_every_requirement_of_the_project() -> None:
    """A dependency added to pyproject.toml is locked before it is used."""
    pins = _pins("requirements.lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras]]

    assert [
        str(each)
        for each in wanted
        if not each.specifier.contains(pins.get(canonicalize_name(each.name), "0"))
        or canonicalize_name(each.name) not in pins
    ] == []


def test_the_image_gets_what_was_tested() -> None:
    """The production lock is a part of the whole, at the same versions."""
    assert _pins("requirements-production.lock").items() < _pins("requirements.lock").items()


def _entries(lock: str) -> list[str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return re.sub(r" \\\n\s+", " ", "\n".join(lines)).splitlines()


def _pins(lock: str) -> dict[str, str]:
    return {
        canonicalize_name(name): version
        for name, version in re.findall(
            r"^([\w.-]+)==([^\s;]+)", "\n".join(_entries(lock)), re.MULTILINE
        )
    }
