"""Who of those that wait comes next, within everybody's limits."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from shared.feeding import Flight
from shared.limits import AccountLimits
from shared.sources import Source
from workers.turns import Turns

Capped = Mapping[str, tuple[str, int]]
"""Of a model as it was named: its entry in the catalogue, and how many may run at once."""


class Allotment:
    """Places in the queue for the next jobs of each source, within everybody's limits.

    Higher priorities come first. Among batches of one priority the turns are in proportion to how
    little time they have left.
    """

    def __init__(
        self,
        found: Sequence[Source],
        flight: Flight,
        limits: Mapping[str, AccountLimits],
        capped: Capped,
    ) -> None:
        self.places: Counter[Source] = Counter()
        self._found = found
        self._flight = flight
        self._limits = limits
        self._capped = capped
        self._busy = Counter[str]()
        """What is in flight of each entry that is capped."""
        for name, jobs in flight.models.items():
            if name in capped:
                self._busy[capped[name][0]] += jobs

    def deal(self, room: int, accounts: Turns, batches: dict[str, Turns]) -> bool:
        """Fill the room; whether some are left who would have come in if it were larger."""
        waiting: dict[str, list[Source]] = {}
        for source in self._found:
            waiting.setdefault(source.account_id, []).append(source)
        weights = {name: float(limits.weight or 1) for name, limits in self._limits.items()}
        circle = accounts.among(waiting, weights)
        for gone in batches.keys() - waiting.keys():
            del batches[gone]
        turns = {
            account: self._in_turn(sources, batches.setdefault(account, Turns()))
            for account, sources in waiting.items()
        }
        while room > 0 and (account := circle.next) is not None:
            if next(turns[account], None) is None:
                circle.leave()
                continue
            circle.dealt()
            room -= 1
        return any(map(self._open, self._found))

    def _in_turn(self, sources: Sequence[Source], turns: Turns) -> Iterator[Source]:
        """An account's sources, each taken when its turn comes and as often as it does."""
        for priority in sorted({source.priority for source in sources}, reverse=True):
            batches: dict[str, list[Source]] = {}
            for source in sources:
                if source.priority == priority:
                    batches.setdefault(source.batch_id or "", []).append(source)
            hurry = {batch: some[0].hurry for batch, some in batches.items()}
            circle = turns.among(batches, hurry)
            while (batch := circle.next) is not None:
                # Of several models, each in turn, and first the one that has waited longest.
                ready = filter(self._open, batches[batch])
                chosen = min(ready, key=lambda one: (self.places[one], one.oldest), default=None)
                if chosen is None:
                    circle.leave()
                    continue
                circle.dealt()
                self._take(chosen)
                yield chosen

    def _open(self, source: Source) -> bool:
        """Whether another of its jobs may come in."""
        entry, of_model = self._capped.get(source.model, ("", None))
        terms = self._limits.get(source.account_id)
        return self.places[source] < source.waiting and not (
            _reached(of_model, self._busy[entry])
            or _reached(terms.running if terms else None, self._flight.accounts[source.account_id])
            or _reached(source.at_once, self._flight.batches[source.batch_id or ""])
        )

    def _take(self, source: Source) -> None:
        self.places[source] += 1
        self._flight.accounts[source.account_id] += 1
        if source.model in self._capped:
            self._busy[self._capped[source.model][0]] += 1
        if source.batch_id is not None:
            self._flight.batches[source.batch_id] += 1


def _reached(most: int | None, now: int) -> bool:
    return most is not None and now >= most
