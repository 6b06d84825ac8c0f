"""The CLI as a client of the API: where it is, which key to show, what went wrong."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cli.failure import FAILED, USAGE, Failure
from cli.home import CLIENT, Home
from cli.options import DEFAULT_URL

SILENCE = 45.0
"""Seconds without a byte after which a connection is dead; the API says something every ten."""

MOST_PROBLEMS = 10
"""Of a batch's lines that are shown."""


class Refused(Failure):
    """The API has answered, and not with what was asked for."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """An API and the key to use it with."""

    url: str
    api_key: str

    @classmethod
    def find(cls, url: str | None, api_key: str | None, home: Path) -> "Address":
        """What the caller gave, else what `sluice up` saved. Raises `Failure` without a key."""
        saved = Home(home).read_object(CLIENT)
        url = (url or saved.get("url") or DEFAULT_URL).rstrip("/").removesuffix("/v1")
        if api_key is None and url == saved.get("url"):  # a saved key is only for where it is from
            api_key = saved.get("api_key")
        if not api_key:
            raise Failure(
                f"There is no API key for {url}. Start `sluice up` in this folder, which saves "
                "one, or set SLUICE_API_KEY; `sluice keys create --account NAME` makes one.",
                code=USAGE,
            )
        return cls(url, api_key)

    def connect(self) -> httpx.Client:
        """A client that shows the key with every request."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.api_key}"},
            timeout=httpx.Timeout(10, read=SILENCE),
            trust_env=not _is_local(self.url),  # a proxy cannot reach our own loopback
        )


def call(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    """One request, its JSON answer. Raises `Failure` with what the API or the network says."""
    try:
        response = client.request(method, path, **options)
    except httpx.TransportError as error:
        raise unreachable(client, error) from None
    refuse(response)
    answer: dict[str, Any] = response.json()
    return answer


def refuse(response: httpx.Response) -> None:
    """Raise `Refused` with the API's own sentence when the answer is an error."""
    if response.is_success:
        return
    response.read()
    try:
        error = response.json()["error"]
        message, code, problems = error["message"], error["code"], error.get("errors") or []
    except (ValueError, LookupError, TypeError):
        message, code, problems = response.text[:500] or response.reason_phrase, None, []
    sentence = f"{message} (HTTP {response.status_code}{f', {code}' if code else ''})"
    if response.status_code == 401:
        sentence += " Set SLUICE_API_KEY to a valid key; `sluice keys create` makes one."
    for one in problems[:MOST_PROBLEMS]:
        sentence += f"\n  line {one['line']}: {one['message']}"
    raise Refused(sentence, response.status_code)


def unreachable(client: httpx.Client, error: httpx.TransportError) -> Failure:
    """The failure for an API that does not answer."""
    url = str(client.base_url).rstrip("/")
    return Failure(
        f"Nothing answers at {url} ({error}). Is `sluice up` running? Else set SLUICE_URL.",
        code=FAILED,
    )


def _is_local(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
