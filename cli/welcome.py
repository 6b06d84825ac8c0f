"""Beside the processes of `sluice up`: wait until all of them answer, then say how to use them."""

import json
import threading
import time
from collections.abc import Callable

import httpx
from sqlmodel import Session

from cli.database import transaction
from cli.failure import Failure
from cli.home import CLIENT, Home
from cli.machine import MachineSettings, Plan
from cli.screen import block, step
from shared import catalog, keys
from shared.errors import InvalidApiKey

ACCOUNT = "local"
REMIND_EVERY = 15.0
"""Seconds between two lines on what is still not ready."""


class Welcome:
    """Waits in a thread; `over` ends the waiting, `failure` says what went wrong."""

    def __init__(self, home: Home, settings: MachineSettings, planned: Plan) -> None:
        self._home = home
        self._settings = settings
        self._planned = planned
        self._began = time.monotonic()
        self.over = threading.Event()
        self.failure: Failure | None = None

    def say(self, give_up: Callable[[], None]) -> None:
        """Wait, find or make a key, print the block; calls `give_up` when that cannot be done."""
        try:
            if self._wait_until_ready():
                block(self._text(self._key()))
        except Exception as error:  # a thread that dies in silence would leave a riddle
            self.failure = error if isinstance(error, Failure) else Failure(f"{error!r}")
            give_up()

    def _wait_until_ready(self) -> bool:
        """False when everything was stopped before."""
        asked = [f"{self._planned.url}/health/ready"]
        if self._planned.model_health is not None:
            asked.insert(0, self._planned.model_health)
        remind_at = self._began + REMIND_EVERY
        with httpx.Client(timeout=5, trust_env=False) as client:
            while not self.over.wait(0.1):
                problem = next(filter(None, (_problem(client, url) for url in asked)), None)
                if problem is None:
                    return True
                if time.monotonic() > remind_at:
                    remind_at += REMIND_EVERY
                    step(f"Not ready yet: {problem}")
        return False

    def _key(self) -> str:
        """The saved key if it still works, else a new one for the account `local`."""
        key = self._home.read_object(CLIENT).get("api_key")
        with transaction(self._settings) as session:
            if not isinstance(key, str) or not _works(session, key):
                _, key = keys.create(session, account=ACCOUNT, name="sluice up")
        self._home.write(CLIENT, json.dumps({"url": self._planned.url, "api_key": key}))
        return key

    def _text(self, key: str) -> str:
        url, model = self._planned.url, next(iter(catalog.load(self._settings.catalog).models), "…")
        ask = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
        flower_auth = self._planned.settings["SLUICE_FLOWER_BASIC_AUTH"]
        return f"""\
Sluice is ready after {time.monotonic() - self._began:.1f} s.

  API      {url}/v1
  Docs     {url}/docs
  Flower   {self._planned.flower_url}   ({flower_auth.replace(":", " / ")})
  API key  {key}

  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \
-H 'Content-Type: application/json' -d '{ask}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  print(client.chat.completions.create(model="{model}", \
messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)

  sluice submit "Why is the sky blue?"     in another terminal, in this folder
  Ctrl-C stops everything; state is kept in {self._home.path}."""


def _works(session: Session, key: str) -> bool:
    try:
        keys.authenticate(session, key)
    except InvalidApiKey:
        return False
    return True


def _problem(client: httpx.Client, url: str) -> str | None:
    """Why this does not answer 200, in a few words; None when it does."""
    try:
        response = client.get(url)
    except httpx.TransportError as error:
        return f"{url}: {error}"
    return None if response.status_code == httpx.codes.OK else f"{url}: {response.text[:300]}"
