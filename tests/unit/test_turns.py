"""Turns: in proportion, none in vain, and no credit for having been away."""

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from workers.turns import EQUAL, Turns

NAMES = st.sampled_from("abcdefg")


def deal(
    turns: Turns, wanting: Mapping[str, int], room: int, weights: Mapping[str, float] = EQUAL
) -> Counter[str]:
    """Who got how many of the places."""
    round, got = turns.among(wanting, weights), Counter[str]()
    while room > got.total() and (name := round.next):
        if got[name] == wanting[name]:
            round.leave()
        else:
            round.dealt()
            got[name] += 1
    return got


@given(st.dictionaries(NAMES, st.integers(1, 30)), st.integers(0, 60))
def test_all_the_room_is_used_as_long_as_somebody_wants_it(
    wanting: dict[str, int], room: int
) -> None:
    """Whoever leaves makes room for the others."""
    assert deal(Turns(), wanting, room).total() == min(room, sum(wanting.values()))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_a_crowd_and_a_single_line_take_turns(rooms: list[int]) -> None:
    """However the places come, they differ by one at most."""
    turns, total = Turns(), Counter[str]()
    for room in rooms:
        total += deal(turns, {"crowd": 100_000, "few": 100_000}, room)

    assert abs(total["crowd"] - total["few"]) <= 1


def test_who_comes_late_gets_a_turn_at_once_and_no_more_than_that() -> None:
    """What was dealt while one was away is not made up for."""
    turns = Turns()
    deal(turns, {"crowd": 1_000}, 500)

    assert deal(turns, {"crowd": 1_000, "late": 1_000}, 2) == {"crowd": 1, "late": 1}
    assert deal(turns, {"crowd": 1_000, "late": 1_000}, 100) == {"crowd": 50, "late": 50}


def test_weights_are_shares() -> None:
    """Three places to one."""
    assert deal(Turns(), {"a": 100, "b": 100}, 80, {"a": 3.0}) == {"a": 60, "b": 20}
