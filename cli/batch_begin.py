"""Begin a batch of a file, or find the one that this output was begun with."""

import hashlib
import secrets
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from cli.batch_output import Note, Output
from cli.client import Refused, call
from cli.failure import USAGE, Failure
from cli.patience import PATIENCE, Patience, insist
from cli.screen import note

ENDPOINT: Final = "/v1/chat/completions"
WRONG: Final = 400
"""The status of a request that cannot have become a batch earlier, nor will."""


def begin(
    client: httpx.Client, source: Path, output: Output, terms: dict[str, Any], *, force: bool
) -> str:
    """The id of the batch, submitted now or earlier; `force` gives up what the output holds.

    Raises `Failure` when it may not be written over, or when the API refuses or stays away.
    """
    if output.path.samefile(source):
        raise Failure("The results cannot go into the input.", code=USAGE)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    url = str(client.base_url).rstrip("/")
    if output.note is None or force:
        if not force and not output.empty:
            raise Failure(
                f"{output.path} is there already, and none of it is left to do. "
                "Name another file with --out, or write over it with --force.",
                code=USAGE,
            )
        request = {**terms, "endpoint": ENDPOINT, "input_file_id": _uploaded(client, source)}
        output.begin(Note(url, digest, secrets.token_hex(), request))
    else:
        _compare(output.note, url, digest, terms)
        output.resume()
    batch_id = output.begun.batch_id
    if batch_id is None:
        try:
            batch_id = _submitted(client, output.begun)
        except Refused as refused:
            if refused.status == WRONG:
                output.forget()
            raise
        output.submitted(batch_id)
    note(f"{batch_id} runs; its results go to {output.path}.")
    return batch_id


def estimate(client: httpx.Client, source: Path, terms: dict[str, Any]) -> dict[str, Any]:
    """What a batch of this file would be. Raises `Failure` when there is something wrong in it."""
    asked = {name: value for name, value in terms.items() if name != "metadata"}
    kind = {"Content-Type": "application/x-ndjson"}
    with source.open("rb") as file:
        query = {**asked, "dry_run": "true"}
        return call(client, "POST", "/v1/batches", params=query, headers=kind, content=file)


def _compare(begun: Note, url: str, digest: str, terms: dict[str, Any]) -> None:
    if (begun.url, begun.input_sha256) != (url, digest):
        raise Failure(
            "This output was begun with another input, or at another API "
            f"({begun.url}; {begun.batch_id}). "
            "Name another file with --out, or give that one up with --force.",
            code=USAGE,
        )
    if terms != {name: begun.request.get(name) for name in terms}:
        note("The terms stay those that it was begun with; see `sluice batch change`.")


def _uploaded(client: httpx.Client, source: Path) -> str:
    """The id of the file."""

    def upload() -> httpx.Response:
        with source.open("rb") as file:
            form = {"file": (source.name, file, "application/jsonl")}
            return client.post("/v1/files", data={"purpose": "batch"}, files=form)

    note(f"Uploading {source} ({source.stat().st_size:,} bytes) …")
    return str(insist(client, upload, Patience(PATIENCE)).json()["id"])


def _submitted(client: httpx.Client, begun: Note) -> str:
    """The id of the batch that the request leads to, be it for the first time or not."""
    once = {"Idempotency-Key": begun.idempotency_key}
    submit = partial(client.post, "/v1/batches", json=begun.request, headers=once)
    return str(insist(client, submit, Patience(PATIENCE)).json()["id"])
