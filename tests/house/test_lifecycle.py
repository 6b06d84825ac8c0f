"""The drawing of a job's life is the table the code runs on."""

import re

from shared.lifecycle import NEXT, TERMINAL
from tests.house.repository import ROOT

OUTSIDE = "[*]"


def test_the_drawn_lifecycle_is_the_real_one() -> None:
    """Every arrow is a transition, and every transition an arrow."""
    real = {(before, after) for before, onward in NEXT.items() for after in onward}

    assert {arrow for arrow in _arrows() if OUTSIDE not in arrow} == real


def test_the_drawing_ends_where_a_job_ends() -> None:
    """A job enters as `queued` and leaves from a final status."""
    edges = {(OUTSIDE, "queued")} | {(status, OUTSIDE) for status in TERMINAL}

    assert {arrow for arrow in _arrows() if OUTSIDE in arrow} == edges


def _arrows() -> set[tuple[str, str]]:
    page = (ROOT / "docs" / "job-lifecycle.md").read_text(encoding="utf-8")
    drawing = page.partition("stateDiagram-v2\n")[2].partition("```")[0]
    return set(re.findall(r"^ +(\S+) --> ([^\s:]+)", drawing, re.MULTILINE))
