"""What the pages tell people to type exists, what they link to is there."""

import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest

from tests.house.commands import unknown
from tests.house.repository import ROOT, code_in, documents, modules, shown

DECISIONS = sorted((ROOT / "docs" / "adr").glob("*.md"))
SECTIONS = ["Context", "Decision", "Consequences", "Alternatives"]
PAGES = [pytest.param(path, id=shown(path)) for path in documents()]


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_a_page_names_exists(page: Path) -> None:
    """The first command a newcomer types must not be the first that fails."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {
        target
        for code in code_in(page.read_text(encoding="utf-8"))
        if (make := re.match(r"make((?: [a-z]+)+)", code))
        for target in make[1].split()
    }

    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_command_a_page_names_exists(page: Path) -> None:
    """`sluice …` in a page is a command the CLI has, with the options shown."""
    lines = code_in(page.read_text(encoding="utf-8"))

    assert [line for line in lines if unknown(line)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_a_page_names_exists(page: Path) -> None:
    """`shared.jobs.move` in a page is something a reader can go and read."""
    named = {
        name
        for code in code_in(page.read_text(encoding="utf-8"))
        for name in re.findall(r"^(?:api|cli|shared|workers)(?:\.\w+)+$", code)
    }

    assert [name for name in sorted(named) if not _leads_somewhere(name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_test_a_page_names_exists(page: Path) -> None:
    """A proof that was renamed proves nothing to who looks for it."""
    named = {
        code
        for code in code_in(page.read_text(encoding="utf-8"))
        if re.fullmatch(r"test_[a-z]\w*", code)
    }

    assert named - _tests() == set()


def test_every_line_of_the_compatibility_page_names_its_proof() -> None:
    """What no test shows is said outside its tables."""
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    claims = [row for row in rows if not re.fullmatch(r"[|-]+", row) and "| proof |" not in row]

    assert claims
    assert [row for row in claims if "`test_" not in row.split("|")[-2]] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    """Files move; links to them move along."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [pytest.param(path, id=path.stem) for path in DECISIONS])
def test_a_decision_has_its_four_parts(page: Path) -> None:
    """Context, decision, consequences, alternatives: in this order, on one page."""
    text = page.read_text(encoding="utf-8")

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert text.startswith(f"# {int(page.name[:4])}. ")
    assert len(text.split()) < 600


@cache
def _tests() -> set[str]:
    written = "\n".join(path.read_text(encoding="utf-8") for path in modules("tests"))
    return set(re.findall(r"^(?:async )?def (test_\w+)", written, re.MULTILINE))


def _leads_somewhere(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True
