"""`AtdakClient`: OpenAI's client, pointed at a Sluice."""

import os
from typing import Any

from openai import OpenAI, OpenAIError

__all__ = ["AtdakClient"]


class AtdakClient(OpenAI):
    """Every method of `openai.OpenAI`, for a server that you name.

    `base_url` ends in `/v1`; both it and `api_key` may be all that OpenAI's own client takes, and
    `options` are its others. What is not given comes from `ATDAK_BASE_URL` and `ATDAK_API_KEY`;
    raises `OpenAIError` when it is not there either, so that no key goes to a server by chance.
    """

    def __init__(self, *, base_url: Any = None, api_key: Any = None, **options: Any) -> None:
        super().__init__(
            base_url=base_url or _variable("ATDAK_BASE_URL"),
            api_key=api_key or _variable("ATDAK_API_KEY"),
            **options,
        )


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise OpenAIError(f"Set {name}, or name it when you create the client.")
    return value
