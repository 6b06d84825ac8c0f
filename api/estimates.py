"""What a batch would use and cost at most, reckoned from its input before anything is made."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import orjson

from shared import features, prices
from shared.batch_lines import BOM, Lines
from shared.catalog import Catalog
from shared.errors import ServiceError

AT_ONCE: Final = 500
"""Lines."""


@dataclass
class Estimate:
    """Sums over the lines that can run."""

    prompt: int = 0
    """Tokens, rather more than fewer."""
    completion: int = 0
    """Tokens, the most that can be said."""
    cost: int = 0
    """Nano-credits, the most that can be charged."""

    def add(self, line: bytes, catalog: Catalog, price: Decimal) -> None:
        """Add what a line may take at a part of the models' prices."""
        body = orjson.loads(line.removeprefix(BOM))["body"]
        try:
            model = catalog.find(body["model"])
            least = prices.least_prompt_tokens(body, room=model.context_window)
            chain = catalog.chain(body["model"], features.used(body), tokens=least)
        except ServiceError:  # what it asks for is no longer on offer: it fails, and costs nothing
            return
        prompt = prices.prompt_tokens(body)
        self.prompt += prompt
        self.completion += prices.output_cap(body, model)
        self.cost += prices.most(body, chain, price, prompt=prompt)


async def estimate(pieces: AsyncIterator[bytes], catalog: Catalog, price: Decimal) -> Estimate:
    """What the lines of a checked input may take. It is read as it comes, in threads."""
    found, lines = Estimate(), Lines(pieces)

    def add(some: list[bytes]) -> None:
        for line in some:
            found.add(line, catalog, price)

    while some := await lines.read(AT_ONCE):
        await asyncio.to_thread(add, some)
    return found
