"""Where a webhook may go: by its URL, by its addresses, and by what the operator allows."""

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import ValidationError

from shared.addresses import Allowed, check_url
from workers import posting
from workers.deliveries import next_try
from workers.posting import Answer, PublicResolver, Refused
from workers.settings import WorkerSettings

NOBODY = Allowed()
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "ff0e::1",
]
PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_everybodys_is_not_reached(address: str) -> None:
    """Whatever it leads to, it is not the receiver's public door."""
    assert not NOBODY.reaches(address)
    with pytest.raises(ValueError, match="public"):
        check_url(f"https://[{address}]/" if ":" in address else f"https://{address}/", NOBODY)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reached(address: str) -> None:
    """Of either kind."""
    assert NOBODY.reaches(address)


@pytest.mark.parametrize(
    "host",
    ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1.", "LOCALHOST", "a.localhost."],
)
def test_other_spellings_of_a_private_address_are_refused(host: str) -> None:
    """Those that the system's resolver would understand."""
    with pytest.raises(ValueError, match="public"):
        check_url(f"https://{host}/", NOBODY)


@pytest.mark.parametrize(
    "url, said",
    [
        ("http://example.com/", "https"),
        ("https://example.com:80/", "443"),
        ("https://example.com:0/", "URL"),
        ("https://example.com:99999/", "URL"),
        ("https://a@example.com/", "credentials"),
        ("https://@example.com/", "credentials"),
        ("https://example.com\\@10.0.0.1/", "URL"),
        ("https://exa mple.com/", "URL"),
        ("https://example.com/\n", "URL"),
        ("//example.com/", "https"),
        ("", "URL"),
    ],
)
def test_a_url_that_is_none_for_us_says_why(url: str, said: str) -> None:
    """In a sentence for whoever wrote it."""
    with pytest.raises(ValueError, match=said):
        check_url(url, NOBODY)


@pytest.mark.parametrize("url", ["https://example.com", "https://example.com:8443/a?b=c#d"])
def test_a_public_url_will_do(url: str) -> None:
    """What its name resolves to is another question."""
    check_url(url, NOBODY)


def test_the_operator_may_allow_hosts_and_networks() -> None:
    """Those may be private, speak http and listen anywhere; no others."""
    allowed = Allowed.parse("hooks.internal, 10.0.0.0/8,::1")

    for url in ("http://hooks.internal:9000/", "http://10.1.2.3:80/", "http://[::1]:1/"):
        check_url(url, allowed)
    for url in ("http://other.internal/", "https://192.168.1.1/", "http://a.hooks.internal/"):
        with pytest.raises(ValueError, match="should"):
            check_url(url, allowed)
    assert allowed.reaches("10.9.9.9")
    assert not allowed.reaches("192.168.1.1")
    with pytest.raises(ValueError, match="neither"):
        Allowed.parse("10.0.0.0/99")


class Names(PublicResolver):
    """A resolver whose system knows these answers, one after another."""

    def __init__(self, allowed: Allowed, *answers: list[str]) -> None:
        super().__init__(allowed, threads=1)
        self.answers = list(answers)

    def look_up(self, host: str, port: int, family: int) -> list[Any]:
        """The next answer."""
        found = []
        for address in self.answers.pop(0):
            kind = socket.AF_INET6 if ":" in address else socket.AF_INET
            found.append((kind, socket.SOCK_STREAM, 6, "", (address, port)))
        return found


async def test_one_private_address_refuses_the_name() -> None:
    """A name with a public one beside it as well: which is taken is not ours to say."""
    resolver = Names(NOBODY, ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"], ["8.8.8.8"])
    for _ in range(2):
        with pytest.raises(Refused):
            await resolver.resolve("rebinds.example", 443)

    [found] = await resolver.resolve("rebinds.example", 443)
    assert (found["host"], found["hostname"]) == ("8.8.8.8", "rebinds.example")
    await resolver.close()


@pytest.mark.parametrize(
    "setting",
    [
        {"webhook_allow": "10.0.0.0/99"},
        {"webhook_allow": "http://hooks.internal"},
        {"webhook_schedule": ""},
        {"webhook_schedule": "5,soon"},
        {"webhook_schedule": "5,-1"},
        {"webhook_schedule": "inf"},
    ],
)
def test_a_worker_with_a_setting_that_means_nothing_does_not_start(setting: dict[str, str]) -> None:
    """Not the first delivery finds out."""
    with pytest.raises(ValidationError):
        WorkerSettings(**setting)  # type: ignore[arg-type]


def test_the_time_of_the_next_try() -> None:
    """By the schedule with a tenth of jitter, or as late as the receiver asks; then no more."""
    schedule = [5.0, 300.0]
    failed = Answer(500)

    assert 4_500 <= (next_try(schedule, 1, failed) or 0) <= 5_500
    assert 270_000 <= (next_try(schedule, 2, failed) or 0) <= 330_000
    assert next_try(schedule, 3, failed) is None
    assert next_try(schedule, 1, Answer(429, retry_after=timedelta(hours=1))) == 3_600_000
    assert next_try(schedule, 1, Answer(410)) is None
    assert next_try(schedule, 1, Answer(error="no", refused=True)) is None


def test_retry_after_is_a_number_or_a_date_and_at_most_a_day() -> None:
    """What is neither asks for nothing."""
    soon = datetime.now(UTC) + timedelta(minutes=10)

    assert posting.retry_after("120") == timedelta(minutes=2)
    assert timedelta(minutes=9) < posting.retry_after(format_datetime(soon)) < timedelta(minutes=11)
    assert posting.retry_after("9" * 30) == timedelta(hours=24)
    for text in (None, "", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert posting.retry_after(text) == timedelta()
