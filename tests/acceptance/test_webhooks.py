"""Webhooks as their receivers know them: signed, sent until they arrive, and never elsewhere."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import text
from standardwebhooks import Webhook, WebhookVerificationError
from typer.testing import CliRunner

from cli.main import app
from shared import db, signatures
from tests.fakes.receiver import Received, Receiver, Reply
from tests.stack import Stack, eventually

ASKED = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Who is told."""
    with Receiver() as server:
        yield server


@pytest.fixture
def http(service: Stack) -> httpx.Client:
    """A caller with an account of its own, so that no test sees another's events."""
    return service.http(service.mint(signatures.new_secret()))


def register(http: httpx.Client, url: str, **terms: Any) -> dict[str, Any]:
    """A new endpoint, with its secret."""
    answer = http.post("/v1/webhook_endpoints", json={"url": url, **terms})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def submit(http: httpx.Client, **fields: Any) -> str:
    """The completion's id of a new job."""
    answer = http.post("/v1/jobs", json={**ASKED, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"]).replace("job_", "chatcmpl-")


def arrived(receiver: Receiver, path: str, many: int = 1) -> list[Received]:
    """The first sendings at a path, once they are there."""
    return eventually(lambda: receiver.at(path)[many - 1 :] and receiver.at(path), 30)


def deliveries(http: httpx.Client, endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """What the log of an endpoint says, newest first."""
    listed = http.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries")
    found: list[dict[str, Any]] = listed.json()["data"]
    return found


def ended(http: httpx.Client, endpoint: dict[str, Any], status: str) -> dict[str, Any]:
    """Its newest delivery, once that has ended so."""

    def look() -> dict[str, Any] | None:
        newest = deliveries(http, endpoint)[:1]
        return newest[0] if newest and newest[0]["status"] == status else None

    return eventually(look, 30)


def test_the_end_of_a_job_is_told_and_both_packages_verify_it(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """OpenAI's thin event under Standard Webhooks' headers; whoever changes a byte is found out."""
    path = "/verified/" + service.home.name
    made = register(http, receiver.url(path), name="ours")
    told = submit(http, metadata={"team": "blue"})

    [sent] = arrived(receiver, path)
    event = sent.event
    assert (event["object"], event["type"]) == ("event", "chat.completion.completed")
    assert event["id"] == sent.id
    assert isinstance(event["created_at"], int)
    data = event["data"]
    assert (data["id"], data["object"], data["status"]) == (told, "chat.completion", "completed")
    assert data["metadata"] == {"team": "blue"}
    assert data["usage"]["total_tokens"] > 0

    client: openai.OpenAI = service.client()
    unwrapped: Any = client.webhooks.unwrap(
        sent.body.decode(), sent.headers, secret=made["signing_secret"]
    )
    assert unwrapped.type == "chat.completion.completed"
    assert unwrapped.data.id == told
    assert Webhook(made["signing_secret"]).verify(sent.body, dict(sent.headers)) == event
    with pytest.raises(WebhookVerificationError):
        Webhook(made["signing_secret"]).verify(
            sent.body.replace(b"blue", b"red "), dict(sent.headers)
        )

    listed = http.get("/v1/events").json()
    assert [one["id"] for one in listed["data"]] == [sent.id]
    assert listed["data"][0] == event
    assert http.get("/v1/events", params={"after": sent.id}).json()["data"] == []
    log = ended(http, made, "delivered")
    assert log["event_id"] == sent.id
    assert [(one["number"], one["status"]) for one in log["attempts"]] == [(1, 200)]
    http.delete(f"/v1/webhook_endpoints/{made['id']}")


def _delivered(http: httpx.Client, where: str) -> list[dict[str, Any]]:
    """What was delivered of a job or a batch."""
    return [one for one in http.get(where).json()["data"] if one["status"] == "delivered"]


def test_a_request_may_name_its_own_webhook(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """Signed with its own secret, for the ends it names; the upstream never hears of it."""
    path, secret = "/own/" + service.home.name, signatures.new_secret()
    hook = {"url": receiver.url(path), "secret": secret, "events": ["chat.completion.completed"]}
    calls = len(service.upstream.calls)
    native = submit(http, webhook=hook)
    answer = http.post("/v1/chat/completions", json={**ASKED, "background": True, "webhook": hook})
    assert answer.status_code == 202
    other = {**hook, "events": ["chat.completion.failed"]}
    submit(http, webhook=other)
    submit(http, webhook={"url": receiver.url(path + "/unsigned")})

    sent = arrived(receiver, path, 2)
    assert {one.event["data"]["id"] for one in sent} == {native, answer.json()["id"]}
    for one in sent:
        Webhook(secret).verify(one.body, dict(one.headers))
    [unsigned] = arrived(receiver, path + "/unsigned")
    assert "webhook-signature" not in unsigned.headers
    assert len(receiver.at(path)) == 2
    assert all("webhook" not in call.body for call in service.upstream.calls[calls:])

    where = f"/v1/jobs/{native}/deliveries"
    [own] = eventually(lambda: _delivered(http, where), 30)
    assert (own["type"], own["endpoint_id"]) == ("chat.completion.completed", None)
    assert (own["url"], [one["status"] for one in own["attempts"]]) == (hook["url"], [200])
    assert secret not in json.dumps(own)
    assert service.http(service.mint("stranger")).get(where).status_code == 404


def test_a_batch_tells_of_itself_and_not_of_its_lines(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """Its own webhook hears of its end, signed; so does an endpoint that names no types."""
    path, secret = "/batch/" + service.home.name, signatures.new_secret()
    register(http, receiver.url(path + "/all"))
    lines = [{"custom_id": str(number), "body": ASKED} for number in range(3)]
    hook = {"url": receiver.url(path), "secret": secret}
    made = http.post("/v1/batches", json={"requests": lines, "webhook": hook}).json()

    [own], [registered] = arrived(receiver, path), arrived(receiver, path + "/all")
    told: Any = service.client().webhooks.unwrap(own.body.decode(), own.headers, secret=secret)
    assert (told.type, told.data.id) == ("batch.completed", made["id"])
    assert own.event["data"]["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert registered.event == own.event
    where = f"/v1/batches/{made['id']}/deliveries"
    eventually(lambda: len(_delivered(http, where)) == 2, 30)
    told_to = {one["url"] for one in _delivered(http, where)}
    assert told_to == {hook["url"], receiver.url(path + "/all")}
    listed = http.get("/v1/events").json()["data"]
    assert [event["type"] for event in listed] == ["batch.in_progress", "batch.completed"]


def test_a_failing_receiver_is_asked_again_with_the_same_bytes(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """Until the schedule is over; every try is in the log, and it can be sent once more by hand."""
    path = "/fails/" + service.home.name
    receiver.script(
        path, Reply(500), Reply(302, (("location", receiver.url("/elsewhere")),)), Reply(503)
    )
    made = register(http, receiver.url(path))
    submit(http)

    log = ended(http, made, "failed")
    sent = receiver.at(path)
    assert [one["status"] for one in log["attempts"]] == [500, 302, 503, 503]
    assert len({(one.id, one.body) for one in sent}) == 1
    assert len(sent) == 4
    assert receiver.at("/elsewhere") == []
    assert http.get(f"/v1/webhook_endpoints/{made['id']}").json()["failing_since"] is not None

    receiver.script(path, Reply(204))
    where = f"/v1/webhook_endpoints/{made['id']}/deliveries/{log['id']}/redeliver"
    assert http.post(where).status_code == 202
    again = ended(http, made, "delivered")
    assert again["id"] != log["id"]
    assert again["event_id"] == log["event_id"]
    assert receiver.at(path)[-1].body == sent[0].body
    assert http.get(f"/v1/webhook_endpoints/{made['id']}").json()["failing_since"] is None
    http.delete(f"/v1/webhook_endpoints/{made['id']}")


def test_a_receiver_that_is_gone_is_disabled(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """410 says so; `/v1/events` tells, and it is sent nothing until it is enabled again."""
    path = "/gone/" + service.home.name
    receiver.script(path, Reply(410), Reply(200))
    made = register(http, receiver.url(path))
    where = f"/v1/webhook_endpoints/{made['id']}"
    submit(http)

    eventually(lambda: not http.get(where).json()["enabled"], 30)
    assert "410" in http.get(where).json()["disabled_reason"]
    disabled = http.get("/v1/events", params={"type": "endpoint.disabled"}).json()["data"]
    assert [one["data"]["id"] for one in disabled] == [made["id"]]
    refused = http.post(f"{where}/test")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "endpoint_disabled")
    later = submit(http)
    listed = eventually(
        lambda: [
            one for one in http.get("/v1/events").json()["data"] if one["data"]["id"] == later
        ],
        30,
    )
    assert http.post(where, json={"enabled": True}).json()["enabled"]
    assert http.post(f"{where}/test").status_code == 202

    sent = arrived(receiver, path, 2)
    assert [one.event["type"] for one in sent] == ["chat.completion.completed", "webhook.test"]
    assert listed[0]["id"] not in {one.id for one in sent}
    http.delete(where)


def test_a_new_secret_signs_beside_the_old_one(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """Whoever has either verifies; the secrets are shown when they are made, and never again."""
    path = "/rotated/" + service.home.name
    made = register(http, receiver.url(path), event_types=["chat.completion.failed"])
    where = f"/v1/webhook_endpoints/{made['id']}"
    fresh = http.post(f"{where}/rotate_secret").json()["signing_secret"]
    assert fresh != made["signing_secret"]
    assert "signing_secret" not in http.get(where).json()
    assert all(
        "signing_secret" not in one for one in http.get("/v1/webhook_endpoints").json()["data"]
    )

    submit(http)  # which it did not ask for
    http.post(f"{where}/test")

    [sent] = arrived(receiver, path)
    assert sent.event["type"] == "webhook.test"
    assert len(sent.headers["webhook-signature"].split()) == 2
    for secret in (made["signing_secret"], fresh):
        Webhook(secret).verify(sent.body, dict(sent.headers))
    http.delete(where)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://user:secret@example.com/",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://[64:ff9b::a00:1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://0x0a000001/",
        "https://localhost/",
        "https://example.com:22/",
        "ftp://example.com/",
        "https://example.com/" + "a" * 2048,
        "https://",
        7,
    ],
)
def test_an_address_that_is_not_public_is_refused_at_once(http: httpx.Client, url: object) -> None:
    """At both places where one can be named; the field is named as well."""
    native = http.post("/v1/jobs", json={**ASKED, "webhook": {"url": url}})
    array = http.post("/v1/jobs", json=[ASKED, {**ASKED, "webhook": {"url": url}}])
    endpoint = http.post("/v1/webhook_endpoints", json={"url": url})

    for answer, param in ((native, "webhook.url"), (array, "[1].webhook.url"), (endpoint, "url")):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_secret_that_cannot_sign_is_refused_and_not_repeated(http: httpx.Client) -> None:
    """Nobody finds out at the first delivery, or in a log."""
    hook = {"url": "https://example.com", "secret": "whsec_dG9vIHNob3J0"}
    answer = http.post("/v1/jobs", json={**ASKED, "webhook": hook})

    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "webhook.secret")
    assert "dG9v" not in error["message"]


def test_the_sdk_registers_and_changes_endpoints(service: Stack, receiver: Receiver) -> None:
    """In its own words; a secret that was not kept signs no more."""
    path, webhooks = "/sdk/" + service.home.name, service.client(service.mint("sdk")).webhooks
    made = webhooks.create(name="ours", url=receiver.url(path), event_types=["batch.completed"])
    assert (made.object, made.name, made.event_types) == (
        "webhook_endpoint", "ours", ["batch.completed"],
    )  # fmt: skip
    changed = webhooks.update(made.id, name="mine", event_types=["batch.failed"])
    assert (changed.name, changed.event_types, changed.url) == (
        "mine", ["batch.failed"], made.url,
    )  # fmt: skip
    assert webhooks.retrieve(made.id) == changed
    assert [each.id for each in webhooks.list(limit=5)] == [made.id]

    fresh = webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=False)
    webhooks.test(made.id, event_type="batch.failed")
    [sent] = arrived(receiver, path)
    webhooks.verify_signature(sent.body, sent.headers, secret=fresh.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        webhooks.verify_signature(sent.body, sent.headers, secret=made.signing_secret)
    assert webhooks.delete(made.id).deleted
    assert list(webhooks.list()) == []


def test_nobody_sees_anothers_endpoints(
    service: Stack, http: httpx.Client, receiver: Receiver
) -> None:
    """They do not exist for him, whatever he tries, and his events are his own."""
    path = "/private/" + service.home.name
    made = register(http, receiver.url(path))
    http.post(f"/v1/webhook_endpoints/{made['id']}/test")
    delivery = ended(http, made, "delivered")
    stranger = service.http(service.mint("stranger"))
    where = f"/v1/webhook_endpoints/{made['id']}"

    for method, place in [
        ("GET", where),
        ("POST", where),
        ("DELETE", where),
        ("POST", f"{where}/rotate_secret"),
        ("POST", f"{where}/test"),
        ("GET", f"{where}/deliveries"),
        ("POST", f"{where}/deliveries/{delivery['id']}/redeliver"),
    ]:
        assert stranger.request(method, place).status_code == 404, place
    theirs = register(stranger, receiver.url(path))
    borrowed = f"/v1/webhook_endpoints/{theirs['id']}/deliveries/{delivery['id']}/redeliver"
    assert stranger.post(borrowed).status_code == 404
    assert stranger.get("/v1/events").json()["data"] == []
    assert http.get(where).json()["url"] == receiver.url(path)
    stranger.delete(f"/v1/webhook_endpoints/{theirs['id']}")
    assert http.delete(where).json()["deleted"]
    assert http.get(where).status_code == 404


def test_an_account_has_twenty_endpoints_at_most(http: httpx.Client) -> None:
    """So that one job's end is not told to the whole world."""
    for number in range(20):
        register(http, f"https://example.com/{number}")

    answer = http.post("/v1/webhook_endpoints", json={"url": "https://example.com/21"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_endpoints")
    assert len(http.get("/v1/webhook_endpoints").json()["data"]) == 20


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_killed_sender_costs_a_second_sending_not_the_event(
    stack: Stack, receiver: Receiver
) -> None:
    """Killed between the receiver's reading and our noting: sent again, with the same id."""
    first = stack.worker()
    stack.ready(stack.api(), first)
    path = "/killed"
    receiver.script(path, Reply(hold=receiver.never), Reply(200))
    http = stack.http()
    made = register(http, receiver.url(path))
    submit(http)
    arrived(receiver, path)
    first.kill()
    assert deliveries(http, made)[0]["status"] == "pending"
    engine = db.connect(stack.database_url)
    with engine.begin() as connection:  # the claim's time has passed
        connection.execute(text("UPDATE deliveries SET next_at = 1 WHERE next_at > 1"))
    engine.dispose()
    stack.worker()

    one, again = arrived(receiver, path, 2)
    assert (again.id, again.body) == (one.id, one.body)
    log = ended(http, made, "delivered")
    assert [one["status"] for one in log["attempts"]] == [None, 200]


def test_all_of_it_can_be_done_from_a_terminal(service: Stack, receiver: Receiver) -> None:
    """A secret is all that stdout has of a new endpoint; lists are for eyes and for pipes."""
    path, key = "/terminal/" + service.home.name, service.mint("terminal")

    def sluice(*arguments: str) -> str:
        asked = [*arguments, "--url", service.url, "--api-key", key]
        done = CliRunner().invoke(app, ["webhooks", *asked])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    secret = sluice("create", receiver.url(path), "--event", "chat.completion.failed")
    [listed] = json.loads(sluice("list", "--json"))["data"]
    assert listed["event_types"] == ["chat.completion.failed"]
    fresh = sluice("rotate", listed["id"])
    sluice("test", listed["id"])
    [sent] = arrived(receiver, path)
    for either in (secret, fresh):
        Webhook(either).verify(sent.body, dict(sent.headers))

    eventually(lambda: "delivered" in sluice("deliveries", listed["id"]), 30)
    [delivery] = json.loads(sluice("deliveries", listed["id"], "--json"))["data"]
    sluice("redeliver", listed["id"], delivery["id"])
    assert arrived(receiver, path, 2)[1].body == sent.body
    assert "disabled" in sluice("disable", listed["id"])
    assert "It was disabled by its owner." in sluice("list")
    sluice("enable", listed["id"])
    sluice("change", listed["id"], "--event", "batch.completed", "--name", "ours")
    [changed] = json.loads(sluice("list", "--json"))["data"]
    assert (changed["event_types"], changed["name"]) == (["batch.completed"], "ours")
    assert (changed["enabled"], changed["url"]) == (True, listed["url"])
    sluice("delete", listed["id"])
    assert sluice("list") == ""
