"""Places in the queue: shared fairly, within everybody's limits, the urgent first."""

from collections import Counter
from typing import Any

from shared.feeding import Flight
from shared.limits import AccountLimits
from shared.sources import Source
from workers.allotment import Allotment
from workers.turns import Turns

HOUR = 3_600_000


def batch(name: str, *, account: str = "a", **fields: Any) -> Source:
    """Many lines of a batch."""
    return Source(**{
        "account_id": account, "batch_id": name, "model": "m", "waiting": 1_000,
        "expires_in": 24 * HOUR, **fields,
    })  # fmt: skip


def loose(account: str, **fields: Any) -> Source:
    """Many jobs of an account that are in no batch."""
    return Source(**{
        "account_id": account, "batch_id": None, "model": "m", "waiting": 1_000, **fields
    })  # fmt: skip


class Room:
    """Turns that are remembered, and what is in flight."""

    def __init__(self) -> None:
        self.flight = Flight(Counter(), Counter(), Counter())
        self.limits: dict[str, AccountLimits] = {}
        self.capped: dict[str, tuple[str, int]] = {}
        self.overflows = False
        self._turns = Turns()
        self._batches: dict[str, Turns] = {}

    def deal(self, places: int, *found: Source) -> dict[str, int]:
        """How many each got, by batch or account."""
        allotment = Allotment(found, self.flight, self.limits, self.capped)
        self.overflows = allotment.deal(places, self._turns, self._batches)
        got = Counter[str]()
        for source, dealt in allotment.places.items():
            got[source.batch_id or source.account_id] += dealt
        return dict(got)


def test_accounts_share_and_then_their_batches() -> None:
    """However many batches an account has."""
    many = [batch(f"b{number}") for number in range(4)]

    assert Room().deal(80, *many, loose("other")) == {
        "b0": 10, "b1": 10, "b2": 10, "b3": 10, "other": 40
    }  # fmt: skip


def test_one_place_at_a_time_makes_the_same_shares() -> None:
    """Turns are remembered from one look to the next."""
    room, got = Room(), Counter[str]()
    for _ in range(40):
        got.update(room.deal(1, batch("b0"), batch("b1"), loose("other")))

    assert got == {"b0": 10, "b1": 10, "other": 20}


def test_the_models_of_an_account_take_turns() -> None:
    """However many wait for one of them; who has waited longest gets the first place."""
    found = [
        loose("a", model="aa", oldest="2"), loose("a", model="zz", oldest="1", waiting=5),
    ]  # fmt: skip
    allotment = Allotment(found, Room().flight, {}, {})
    allotment.deal(30, Turns(), {})
    assert sorted(allotment.places.values()) == [5, 25]

    allotment = Allotment(found, Room().flight, {}, {})
    allotment.deal(1, Turns(), {})
    assert allotment.places == {found[1]: 1}


def test_weights_of_accounts_are_shares() -> None:
    """Three times the weight, three times the places."""
    room = Room()
    room.limits = {"heavy": AccountLimits(weight=3)}

    assert room.deal(40, loose("heavy"), loose("light")) == {"heavy": 30, "light": 10}


def test_a_higher_priority_goes_first() -> None:
    """Until nothing of it is left."""
    found = (batch("urgent", priority=5, waiting=7), batch("usual"))

    assert Room().deal(10, *found) == {"urgent": 7, "usual": 3}


def test_of_one_priority_what_ends_sooner_gets_more() -> None:
    """In proportion; a deadline that has passed counts as a minute."""
    assert Room().deal(25, batch("soon", expires_in=HOUR), batch("later")) == {
        "soon": 24, "later": 1
    }  # fmt: skip
    assert Room().deal(14, batch("over", expires_in=-HOUR), batch("soon", expires_in=60_000)) == {
        "over": 7, "soon": 7
    }  # fmt: skip


def test_no_limit_is_passed_and_no_place_lost_to_one() -> None:
    """Of an account, of a batch, of a model under any of its names."""
    room = Room()
    room.flight.accounts["a"], room.flight.batches["slow"] = 2, 1
    room.flight.models["alias"] = 3
    room.limits = {"a": AccountLimits(running=6)}
    room.capped = {"scarce": ("scarce", 5), "alias": ("scarce", 5)}
    found = (
        batch("slow", at_once=2), loose("a"), loose("b", model="scarce"), loose("c", model="alias"),
        loose("d", waiting=9),
    )  # fmt: skip

    assert room.deal(50, *found) == {"slow": 1, "a": 3, "b": 1, "c": 1, "d": 9}
    assert not room.overflows  # what still waits would not come in for more room either


def test_it_tells_whether_more_would_have_come_in() -> None:
    """Those that come later have to wait behind them."""
    room = Room()
    room.deal(5, loose("a", waiting=6))
    assert room.overflows
    room.deal(6, loose("a", waiting=6))
    assert not room.overflows
