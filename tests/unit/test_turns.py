"""Turns: in proportion, none in vain, and no credit for having been away."""

from hypothesis import given
from hypothesis import strategies as st

from workers.turns import Turns

NAMES = st.sampled_from("abcdefg")


@given(st.dictionaries(NAMES, st.integers(1, 30)), st.integers(0, 60))
def test_all_the_room_is_used_and_nobody_gets_more_than_wanted(
    wanting: dict[str, int], room: int
) -> None:
    """As long as somebody wants it."""
    dealt = Turns().deal(wanting, room)

    assert sum(dealt.values()) == min(room, sum(wanting.values()))
    assert all(0 < places <= wanting[name] for name, places in dealt.items())


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_a_crowd_and_a_single_line_take_turns(rooms: list[int]) -> None:
    """However the places come, they differ by one at most."""
    turns, total = Turns(), {"crowd": 0, "few": 0}
    for room in rooms:
        for name, places in turns.deal({"crowd": 100_000, "few": 100_000}, room).items():
            total[name] += places

    assert abs(total["crowd"] - total["few"]) <= 1


def test_who_comes_late_gets_a_turn_at_once_and_no_more_than_that() -> None:
    """What was dealt while one was away is not made up for."""
    turns = Turns()
    turns.deal({"crowd": 1_000}, 500)

    assert turns.deal({"crowd": 1_000, "late": 1_000}, 2) == {"crowd": 1, "late": 1}
    assert turns.deal({"crowd": 1_000, "late": 1_000}, 100) == {"crowd": 50, "late": 50}


def test_weights_are_shares() -> None:
    """Three places to one."""
    dealt = Turns().deal({"a": 100, "b": 100}, 80, {"a": 3.0})

    assert dealt == {"a": 60, "b": 20}
