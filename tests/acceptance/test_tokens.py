"""JSON Web Tokens in place of keys, through a running API; one database makes no difference."""

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlmodel import Session

from shared import accounts, db
from tests.conftest import parts
from tests.fakes.issuer import AUDIENCE, NAME, Issuer
from tests.stack import Stack
from tests.valkey import free_port

ASK: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """Somebody we trust."""
    with Issuer() as opened:
        yield opened


@pytest.fixture(scope="module")
def service(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running service that accepts that issuer's tokens."""
    with parts(tmp_path_factory.mktemp("tokens")) as opened:
        opened.environment |= {
            "SLUICE_JWT_JWKS_URL": issuer.url,
            "SLUICE_JWT_ISSUER": NAME,
            "SLUICE_JWT_AUDIENCE": AUDIENCE,
        }
        yield opened.up()


def account_id(service: Stack, name: str, **columns: Any) -> str:
    """The id of a new account."""
    engine = db.connect(service.database_url)
    with Session(engine) as session, session.begin():
        account = accounts.ensure(session, name)
        for column, value in columns.items():
            setattr(account, column, value)
        found = account.id
    engine.dispose()
    return found


def test_a_token_is_as_good_as_a_key(service: Stack, issuer: Issuer) -> None:
    """Its jobs are its account's, also for another token of it, and for nobody else."""
    ours, theirs = account_id(service, "tokens"), account_id(service, "others")
    client = service.client(issuer.token(ours))

    answer = client.chat.completions.create(**ASK, extra_headers={"idempotency-key": "one"})
    assert answer.choices[0].message.content
    again = client.chat.completions.create(**ASK, extra_headers={"idempotency-key": "one"})
    assert again.id == answer.id
    repeated = {"x-stainless-retry-count": "0", "user-agent": "OpenAI/Python"}
    assert client.chat.completions.create(**ASK, extra_headers=repeated).id != answer.id
    with service.http(issuer.token(ours, jti="another")) as http:
        assert len(http.get("/v1/jobs").json()["data"]) == 2
        usage = http.get("/v1/usage", params={"group_by": "key"}).json()["data"]
        assert [(row["key"], row["jobs"]) for row in usage] == [(None, 2)]
        assert http.get("/v1/credits/balance").status_code == 200
    with service.http(issuer.token(theirs)) as http:
        assert http.get("/v1/jobs").json()["data"] == []
        assert http.get(f"/v1/jobs/{answer.id}").status_code == 404


def test_a_token_that_tries_to_break_the_answer_is_401(service: Stack) -> None:
    """What it says is told in plain letters, and not at length."""
    header = b64encode(json.dumps({"alg": "RS256", "crit": ["\ud800" * 500]}).encode())
    with service.http(f"{header.decode().rstrip('=')}.e30.x") as http:
        answer = http.get("/v1/jobs")

    assert answer.status_code == 401
    assert len(answer.text) < 600


def test_a_token_that_is_not_good_is_401(service: Stack, issuer: Issuer) -> None:
    """With a code that tells an expired one, and what to send instead."""
    good = account_id(service, "good")
    gone = account_id(service, "gone", disabled_at=1)
    refusals = {
        issuer.token(good, exp=1): "token_expired",
        issuer.token(good, aud="another"): "invalid_api_key",
        issuer.token(good, kid="unknown"): "invalid_api_key",
        issuer.token(gone): "invalid_api_key",
        issuer.token("acct_" + "0" * 26): "invalid_api_key",
        issuer.token("\0"): "invalid_api_key",
        issuer.token(good)[:-8] + "AAAAAAAA": "invalid_api_key",
        "a.b.c": "invalid_api_key",
        "a.b.": "invalid_api_key",
        ("x" * 10_000) + ".y.z": "invalid_api_key",
    }

    for token, code in refusals.items():
        answer = httpx.get(f"{service.url}/v1/jobs", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code), token
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"
    as_key = httpx.get(f"{service.url}/v1/jobs", headers={"x-api-key": issuer.token(good)})
    assert as_key.status_code == 401


def test_a_token_does_what_its_scope_says(service: Stack, issuer: Issuer) -> None:
    """It may administer, and is then in the log; but it makes no key of that right."""
    admin_id = account_id(service, "admin")
    with service.http(issuer.token(admin_id)) as http:
        assert http.get("/v1/admin/keys").status_code == 403
    with pytest.raises(openai.PermissionDeniedError):
        service.client(issuer.token(admin_id, scope="other")).models.list()
    with service.http(issuer.token(admin_id, scope="admin")) as http:
        made = http.post("/v1/admin/keys", json={"account_id": admin_id})
        assert made.status_code == 201
        assert http.get("/v1/admin/audit").json()["data"][0]["actor"] == admin_id
        for path, body in (
            ("", {"account_id": admin_id, "scopes": ["admin"]}),
            (f"/{made.json()['id']}", {"scopes": ["completions", "admin"]}),
        ):
            answer = http.post(f"/v1/admin/keys{path}", json=body)
            assert answer.status_code == 403
            assert answer.json()["error"]["param"] == "scopes"


def test_an_issuer_that_was_never_reached_is_503(service: Stack, issuer: Issuer) -> None:
    """Not 401: the token may be good. Keys go on working."""
    port = free_port()
    nowhere = f"http://127.0.0.1:{free_port()}/keys"
    service.api(port, SLUICE_JWT_JWKS_URL=nowhere)
    url = f"http://127.0.0.1:{port}/v1/jobs"
    token = issuer.token(account_id(service, "waiting"))

    answer = httpx.get(url, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert httpx.get(url, headers={"authorization": f"Bearer {service.key}"}).status_code == 200
