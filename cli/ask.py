"""`sluice submit` and `sluice watch`: ask, and see the answer as it is said."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.failure import FAILED, INTERRUPTED, USAGE, Failure
from cli.options import DEFAULT_HOME, ApiKey, Home, Url
from cli.screen import note

if TYPE_CHECKING:
    import httpx


def submit(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask; `-` reads stdin; a `.json` file is a whole request."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A chat completion request in JSON.")] = None,
    model: Annotated[str | None, typer.Option(help="Else the first one available.")] = None,
    background: Annotated[
        bool, typer.Option("--background", help="Print the job's id and leave it to itself.")
    ] = False,
    stream: Annotated[bool, typer.Option(help="Print the answer as it is said.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final object.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Submit a request and print the answer. The job goes on if this terminal is closed.

    Examples: `sluice submit "Why is the sky blue?"`, `sluice submit --json --file request.json`
    """
    from cli.client import Address, call

    request = _request(prompt, file)
    with Address.find(url, api_key, home).connect() as client:
        request["model"] = model or request.get("model") or _first_model(client)
        request["stream"] = stream and not as_json
        job = call(client, "POST", "/v1/jobs", json=request)
        if background:
            typer.echo(json.dumps(job) if as_json else job["id"])
            return
        note(f"{job['id']} {_state(job)}")
        _show_answer(client, job["id"], stream=request["stream"], as_json=as_json)


def watch(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="Any of a job's three ids.")],
    after: Annotated[int, typer.Option(min=0, help="Leave out the first N chunks.")] = 0,
    url: Url = None,
    api_key: ApiKey = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print a job's answer from its start, then as it goes on, through lost connections.

    Fails (exit code 1) when the job does. Example: `sluice watch job_01jd3n6y8t7zs9x5w2v4b1c0ae`
    """
    from cli.client import Address, call

    with Address.find(url, api_key, home).connect() as client:
        note(f"{job_id} {_state(call(client, 'GET', f'/v1/jobs/{job_id}'))}")
        _show_answer(client, job_id, after=after)


def _show_answer(
    client: "httpx.Client",
    job_id: str,
    *,
    after: int = 0,
    stream: bool = True,
    as_json: bool = False,
) -> None:
    """Print what the model says until the job has ended. Raises `Failure` unless it completed."""
    from cli.client import call
    from cli.follow import until_ended

    said = None
    try:
        if stream:
            said = _print_stream(client, job_id, after)
        completion = until_ended(client, job_id)
    except KeyboardInterrupt:
        note(
            f"\nThe job goes on: `sluice watch {job_id}` shows the rest, "
            f"`sluice cancel {job_id}` stops it."
        )
        raise typer.Exit(INTERRUPTED) from None
    job = call(client, "GET", f"/v1/jobs/{job_id}")
    if job["status"] != "completed":
        raise Failure(f"{job_id} {_state(job)}", code=FAILED)
    texts = _texts(completion)
    if as_json:
        typer.echo(json.dumps(completion))
    elif said is None:
        typer.echo("\n\n".join(texts))
    else:
        if not texts[0].endswith(said):
            note("An attempt failed on the way and the job began anew. The whole answer is:")
            typer.echo(texts[0])
        for other in texts[1:]:
            typer.echo(f"\n{other}")
    note(f"{job_id} {_state(job)}")


def _print_stream(client: "httpx.Client", job_id: str, after: int) -> str:
    """Print the text of the first choice as it comes; returns it."""
    from cli.follow import follow

    said = []
    for event in follow(client, job_id, after):
        if event.name == "error":
            continue  # the job's row says it again, with its status
        for choice in json.loads(event.data)["choices"]:
            text = choice["delta"].get("content") or ""
            if text and choice["index"] == 0:
                said.append(text)
                sys.stdout.write(text)
                sys.stdout.flush()
    if said:
        sys.stdout.write("\n")
    return "".join(said)


def _texts(completion: dict[str, Any]) -> list[str]:
    """What each choice says; a tool call, say, is shown as JSON."""
    messages = [choice["message"] for choice in completion["choices"]]
    return [message.get("content") or json.dumps(message) for message in messages]


def _request(prompt: str | None, file: Path | None) -> dict[str, Any]:
    if prompt is not None and file is not None:
        raise Failure("Give a prompt or a file, not both.", code=USAGE)
    if prompt is not None and prompt.endswith(".json") and Path(prompt).is_file():
        file = Path(prompt)
    if file is not None:
        return _read_request(file)
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt or not prompt.strip():
        raise Failure('What shall the model be asked? Try `sluice submit "Hello"`.', code=USAGE)
    return {"messages": [{"role": "user", "content": prompt}]}


def _read_request(file: Path) -> dict[str, Any]:
    try:
        request = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise Failure(f"{file}: {error}", code=USAGE) from None
    if not isinstance(request, dict):
        raise Failure(f"{file} holds no JSON object.", code=USAGE)
    return request


def _first_model(client: "httpx.Client") -> str:
    from cli.client import call

    for offered in call(client, "GET", "/v1/models")["data"]:
        if offered.get("available", True):
            return str(offered["id"])
    raise Failure("No model is available now; `sluice doctor` may say why.", code=FAILED)


def _state(job: dict[str, Any]) -> str:
    """What has become of a job, in a few words."""
    words = [str(job["status"])]
    if job.get("status_reason"):
        words.append(f"({job['status_reason']})")
    if error := job.get("error"):
        words.append(f"· {error['message']} [{error['code']}]")
    if usage := job.get("usage"):
        words.append(f"· {usage['completion_tokens']} tokens")
    if job.get("attempt", 0) > 1:
        words.append(f"· attempt {job['attempt']}")
    return " ".join(words)
