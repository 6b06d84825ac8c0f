"""Deliveries on their way from a worker, among them some to receivers that mean us no good."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlmodel import Session, col, func, select

from shared import accounts, events
from shared.addresses import Allowed
from shared.db import Transactions
from shared.tables import Delivery
from tests import sqlite
from tests.factories import Sessions
from tests.fakes.receiver import Receiver
from workers.deliveries import EACH, Deliveries
from workers.posting import PublicResolver
from workers.settings import WorkerSettings

SOON = aiohttp.ClientTimeout(total=0.1)
LOOPBACK = Allowed.parse("127.0.0.1,hooks.test")


class Hanging(PublicResolver):
    """A resolver that nobody answers but for one name."""

    def __init__(self, threads: int) -> None:
        super().__init__(LOOPBACK, threads=threads)
        self.asked: list[str] = []
        self.let_go = threading.Event()

    def look_up(self, host: str, port: int, family: int) -> list[Any]:
        """Nothing, for as long as the test likes."""
        if host != "hooks.test":
            self.asked.append(host)
            assert self.let_go.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "nobody answers")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    """Which database it is makes no difference here."""
    opened = Sessions(sqlite.fresh(tmp_path))
    yield opened
    opened.close()


def tell(session: Session, account: str, *urls: str) -> None:
    """Put an event on its way to each of these."""
    account_id = accounts.ensure(session, account).id
    for url in urls:
        job = {"id": "chatcmpl-1", "object": "chat.completion"}
        hook = {"url": url}
        events.record(session, account_id, "chat.completion.failed", job, webhook=hook)


def tries(session: Session, account: str) -> int:
    """How often something was sent for an account."""
    ours = accounts.ensure(session, account).id
    sent = select(func.sum(Delivery.attempt)).where(col(Delivery.account_id) == ours)
    return session.exec(sent).one()


async def until(true: Callable[[], bool]) -> None:
    """Return as soon as it is."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.02)


async def test_names_that_nobody_answers_for_hold_up_no_one_else(sessions: Sessions) -> None:
    """Their lookups go on when their sendings are over: an account has so many, a name has one."""
    one_name = [f"https://slow.example/{number}" for number in range(2 * EACH)]
    names = [f"https://{number}.slow.example/" for number in range(2 * EACH)]
    with sessions() as session:
        tell(session, "many names", *names)
    resolver, tx = Hanging(threads=EACH + 2), Transactions(sessions.engine)
    given = {"webhook_schedule": "0.05,0.05,0.05", "webhook_allow": "hooks.test"}
    sender = Deliveries(WorkerSettings(**given), tx, resolver, SOON)  # type: ignore[arg-type]
    sender.start()
    try:
        with Receiver() as receiver:
            await until(lambda: len(set(resolver.asked)) == EACH)
            with sessions() as session:
                tell(session, "one name", *one_name)

            def given_up() -> bool:
                with sessions() as session:
                    return tries(session, "one name") >= EACH

            await until(given_up)
            with sessions() as session:
                tell(session, "ours", receiver.url("/told", host="hooks.test"))

            await until(lambda: len(receiver.at("/told")) == 1)
            assert len(resolver.asked) == EACH + 1
            resolver.let_go.set()
            await until(lambda: len(set(resolver.asked)) == 2 * EACH + 1)
    finally:
        resolver.let_go.set()
        await sender.stop()
        tx.close()
