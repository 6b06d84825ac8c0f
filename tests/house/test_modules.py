"""A module is a page of thought, with a name that says what is in it."""

from pathlib import Path

from tests.house.repository import PACKAGES, modules, shown

CEILING = 400
VAGUE = {"base", "common", "core", "helpers", "manager", "misc", "util", "utils"}


def test_no_module_is_longer_than_a_page_of_thought() -> None:
    """Past 400 lines a module is split by noun."""
    long = {shown(path): _lines(path) for path in modules(*PACKAGES)}

    assert {name: lines for name, lines in long.items() if lines > CEILING} == {}


def test_no_module_has_a_vague_name() -> None:
    """`utils` says nothing about what is in it, so anything ends up there."""
    vague = [
        shown(path)
        for path in modules(*PACKAGES, "tests")
        if VAGUE & {path.stem.lstrip("_"), *path.relative_to(path.parents[1]).parts[:-1]}
    ]

    assert vague == []


def test_every_folder_of_modules_is_a_package() -> None:
    """Otherwise it runs from a checkout and is missing from the installed project."""
    folders = {path.parent for path in modules(*PACKAGES)}

    assert [shown(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
