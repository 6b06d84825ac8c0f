"""What was found a moment ago."""

import pytest

from shared.lately import LASTS, MOST, Forgotten, Lately


def test_a_finding_is_good_for_a_second() -> None:
    """For whoever asks the same; another question is looked into."""
    now, looks = [0.0], iter(range(10))
    lately = Lately(lambda: now[0])

    def asked(what: str) -> int:
        return lately.of(what, lambda: next(looks))

    assert [asked("a"), asked("a"), asked("b")] == [0, 0, 1]
    now[0] = LASTS - 0.1
    assert asked("a") == 0
    now[0] = LASTS
    assert [asked("a"), asked("a"), asked("b")] == [2, 2, 3]


def test_what_has_aged_is_not_kept() -> None:
    """However much was asked."""
    now = [0.0]
    lately = Lately(lambda: now[0])
    for number in range(5 * MOST):
        now[0] += LASTS / 100
        lately.of(number, lambda: None)

    assert len(lately._found) <= MOST


def test_what_is_not_known_is_forgotten() -> None:
    """Whether it was never found, or longer ago than a second."""
    now = [0.0]
    lately = Lately(lambda: now[0])
    lately.of("a", lambda: 1)

    assert lately.known("a") == 1
    with pytest.raises(Forgotten):
        lately.known("b")
    now[0] = LASTS
    with pytest.raises(Forgotten):
        lately.known("a")
