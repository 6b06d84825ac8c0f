"""A running service over two scripted upstreams, one of each dialect, with models that cost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlmodel import Session

from shared import accounts, db, ledger
from shared.limits import Limits
from shared.prices import NANO
from tests.conftest import parts
from tests.fakes.anthropic import ScriptedAnthropic
from tests.fakes.upstream import ScriptedUpstream
from tests.stack import Stack

ANTHROPIC = """
[upstreams.anthropic]
dialect = "anthropic"
base_url = "{base_url}"
"""
PRICED = """
[models."{name}"]
upstream = "{upstream}"
context_window = 128000
max_output_tokens = 4096
input_price = 1.0
output_price = 2.0
"""


class Payer(NamedTuple):
    """Who can pay."""

    account_id: str
    key: str


@dataclass(frozen=True)
class Bilingual:
    """The service and both of its upstreams."""

    stack: Stack
    openai: ScriptedUpstream
    anthropic: ScriptedAnthropic

    def rich(self, name: str, credits: int = 1_000, *, limits: Limits | None = None) -> Payer:
        """An account with so many credits, and the key of it."""
        key = self.stack.mint(name)
        engine = db.connect(self.stack.database_url)
        with Session(engine) as session, session.begin():
            account = accounts.ensure(session, name)
            account.limits = None if limits is None else limits.model_dump(exclude_none=True)
            ledger.grant(session, account.id, credits * NANO, note="test")
            account_id = account.id
        engine.dispose()
        return Payer(account_id, key)


@contextmanager
def bilingual(
    home: Path, openai: Sequence[str], anthropic: Sequence[str], **environment: str
) -> Iterator[Bilingual]:
    """A service on SQLite that offers these models of each upstream, under these settings."""
    with parts(home) as stack, ScriptedAnthropic() as claude:
        stack.environment |= environment
        models = [(name, "fake") for name in openai] + [(name, "anthropic") for name in anthropic]
        stack.catalogue(
            ANTHROPIC.format(base_url=claude.base_url)
            + "".join(PRICED.format(name=name, upstream=upstream) for name, upstream in models)
        )
        yield Bilingual(stack.up(), stack.upstream, claude)
