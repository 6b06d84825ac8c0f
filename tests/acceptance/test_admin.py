"""Administration over HTTP: accounts, keys, credits and the log of it, with an admin's key."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from sqlmodel import Session

from shared import administration, db, keys
from shared.tables import Job
from tests.fakes.upstream import Stall
from tests.stack import Stack, eventually

# The stricter of the two with text; the other is asked in tests/integration.
pytestmark = pytest.mark.parametrize("service", ["postgresql"], indirect=True, scope="module")
ASK: dict[str, Any] = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def admin(service: Stack) -> Iterator[httpx.Client]:
    """Somebody whose key has the scope `admin` and no other."""
    engine = db.connect(service.database_url)
    with Session(engine) as session, session.begin():
        _, text = administration.create_key(
            session, "cli:test", account="office", scopes=[keys.ADMIN]
        )
    engine.dispose()
    with service.http(text) as client:
        yield client


def done(answer: httpx.Response, status: int = 200) -> dict[str, Any]:
    """What it says."""
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: httpx.Response, status: int) -> tuple[str, str | None]:
    """Code and field."""
    error = done(answer, status)["error"]
    return error["code"], error["param"]


def account(admin: httpx.Client, name: str, **more: Any) -> dict[str, Any]:
    """A new account."""
    return done(admin.post("/v1/admin/accounts", json={"name": name, **more}), 201)


def key(admin: httpx.Client, account_id: str, **terms: Any) -> dict[str, Any]:
    """A new key of it."""
    asked = {"account_id": account_id, **terms}
    return done(admin.post("/v1/admin/keys", json=asked), 201)


def test_an_account_its_key_and_its_credits_from_the_first_call_to_the_last(
    service: Stack, admin: httpx.Client
) -> None:
    """What an administrator sets up works with the SDK at once, and ends when it is disabled."""
    made = account(admin, "customer", limits={"concurrency": 5})
    account_id = made["id"]
    minted = key(admin, account_id, name="app")
    client = service.client(minted["api_key"])
    grant = {"account_id": account_id, "credits": 1.5, "note": "Welcome", "reference": "w"}
    first = done(admin.post("/v1/admin/credits", json=grant), 201)
    assert done(admin.post("/v1/admin/credits", json=grant), 201)["id"] == first["id"]

    assert client.chat.completions.create(**ASK).choices[0].message.content
    shown = done(admin.get(f"/v1/admin/accounts/{account_id}"))
    assert (shown["remaining_credits"], shown["limits"]) == (1.5, {"concurrency": 5})
    balance = done(admin.get("/v1/admin/credits", params={"account_id": account_id}))
    assert balance["remaining_credits"] == 1.5
    ledger = done(admin.get("/v1/admin/credits/ledger", params={"account_id": account_id}))
    assert [(row["credits"], row["note"]) for row in ledger["data"]] == [(1.5, "Welcome")]

    changed = admin.post(f"/v1/admin/accounts/{account_id}", json={"limits": None})
    assert done(changed)["limits"] is None
    disabled = done(admin.post(f"/v1/admin/accounts/{account_id}/disable"))
    assert disabled["disabled_at"] is not None
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    done(admin.post(f"/v1/admin/accounts/{account_id}/enable"))
    assert client.models.list().data
    listed = done(admin.get("/v1/admin/accounts", params={"limit": 1}))
    assert listed["data"][0]["id"] == account_id
    assert listed["has_more"]


def test_a_key_may_ask_for_its_models_only(service: Stack, admin: httpx.Client) -> None:
    """By name or pattern; it sees no others, and a change counts from the next request on."""
    minted = key(admin, account(admin, "narrow")["id"], models=["test-1", "test-2*"])
    client = service.client(minted["api_key"])

    assert client.chat.completions.create(**{**ASK, "model": "test-2"}).id
    with pytest.raises(openai.PermissionDeniedError) as raised:
        client.chat.completions.create(**ASK)
    assert (raised.value.code, raised.value.param) == ("model_not_allowed", "model")
    assert raised.value.type == "permission_error"
    with service.http(minted["api_key"]) as http:
        assert refused(http.post("/v1/jobs", json=ASK), 403) == ("model_not_allowed", "model")
        many = [{**ASK, "model": "test-1"}, ASK]
        assert refused(http.post("/v1/jobs", json=many), 403)[1] == "[1].model"
        assert done(http.get("/v1/jobs"))["data"][0]["model"] == "test-2"
    assert [model.id for model in client.models.list()] == ["test-1", "test-2"]
    with pytest.raises(openai.PermissionDeniedError):
        client.models.retrieve("test")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ASK, "model": "nope"})

    done(admin.post(f"/v1/admin/keys/{minted['id']}", json={"models": None}))
    assert client.chat.completions.create(**ASK).id


def test_a_key_does_what_its_scopes_say(service: Stack, admin: httpx.Client) -> None:
    """One that submits does not administer, one that administers does not submit."""
    minted = key(admin, account(admin, "scoped")["id"], scopes=["completions", "admin"])

    assert refused(admin.post("/v1/jobs", json=ASK), 403) == ("permission_denied", None)
    with service.http() as plain:
        for path in ("accounts", "keys", "credits", "audit"):
            code, _ = refused(plain.get(f"/v1/admin/{path}"), 403)
            assert code == "permission_denied"
        assert refused(plain.post("/v1/admin/keys", json={}), 403)[0] == "permission_denied"
    with service.http(minted["api_key"]) as both:
        assert both.post("/v1/jobs", json=ASK).status_code == 202
        assert both.get("/v1/admin/keys").status_code == 200


def test_a_key_is_rotated_revoked_and_expired(service: Stack, admin: httpx.Client) -> None:
    """Its text is shown once, to whoever made it."""
    account_id = account(admin, "rotating")["id"]
    old = key(admin, account_id, limits={"concurrency": 1}, credit_limit="0.5")

    def works(minted: dict[str, Any]) -> bool:
        with service.http(minted["api_key"]) as http:
            return http.get("/v1/jobs").status_code == 200

    path = f"/v1/admin/keys/{old['id']}/rotate"
    new = done(admin.post(path, json={"overlap": 3600}), 201)
    assert works(old)
    assert works(new)
    assert new["limits"] == {"concurrency": 1}
    assert new["credit_limit"] == 0.5
    done(admin.post(path), 201)
    assert not works(old)
    assert done(admin.post(f"/v1/admin/keys/{new['id']}/revoke"))["revoked_at"]
    assert not works(new)

    listed = done(admin.get("/v1/admin/keys", params={"account_id": account_id}))
    assert len(listed["data"]) == 3
    assert "api_key" not in str(listed["data"][0].keys())
    third = listed["data"][0]["id"]
    assert done(admin.post(f"/v1/admin/keys/{third}", json={"expires_at": 1}))["expires_at"] == 1
    assert done(admin.get(f"/v1/admin/keys/{third}"))["expires_at"] == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs"])
def test_a_key_that_was_just_used_is_looked_at_again(
    service: Stack, admin: httpx.Client, path: str
) -> None:
    """Whatever the api remembers of it: each change, also another process's, counts at once."""
    account_id = account(admin, f"watched {path}")["id"]
    minted = key(admin, account_id)
    terms = f"/v1/admin/keys/{minted['id']}"
    with service.http(minted["api_key"]) as http:

        def submitted() -> tuple[int, str | None]:
            answer = http.post(path, json={**ASK, "background": True})
            return answer.status_code, answer.json().get("error", None) and refused(
                answer, answer.status_code
            )[0]

        def change(where: str, **terms: Any) -> None:
            assert submitted() == (202, None)
            done(admin.post(where, json=terms))

        change(terms, models=["test-1"])
        assert submitted() == (403, "model_not_allowed")
        done(admin.post(terms, json={"models": None}))
        change(terms, limits={"concurrency": 1, "requests_per_minute": 1})
        assert [submitted()[0] for _ in range(2)] == [202, 429]
        done(admin.post(terms, json={"limits": None}))
        change(f"/v1/admin/accounts/{account_id}/disable")
        assert submitted() == (401, "invalid_api_key")
        done(admin.post(f"/v1/admin/accounts/{account_id}/enable"))
        change(terms, expires_at=1)
        assert submitted() == (401, "invalid_api_key")
        assert http.post(path, content=b"{").status_code == 401


def test_a_job_that_was_accepted_is_not_accepted_again(service: Stack, admin: httpx.Client) -> None:
    """Also when its key is changed while it is waited for, and then something goes wrong."""
    service.upstream.script("test-1", Stall())
    asked = {**ASK, "model": "test-1"}
    minted = key(admin, account(admin, "waiting")["id"])
    engine = db.connect(service.database_url)
    with service.http(minted["api_key"]) as http, ThreadPoolExecutor() as threads:
        assert http.get("/v1/jobs").json()["data"] == []
        held = threads.submit(http.post, "/v1/chat/completions", json=asked)
        running = {"status": "in_progress"}
        [job] = eventually(lambda: http.get("/v1/jobs", params=running).json()["data"])
        done(admin.post(f"/v1/admin/keys/{minted['id']}", json={"models": ["test-1"]}))
        with Session(engine) as session, session.begin():
            session.delete(session.get_one(Job, job["id"].removeprefix("job_")))

        assert refused(held.result(timeout=30), 404)[0] == "not_found"
        assert http.get("/v1/jobs").json()["data"] == []
    engine.dispose()


def test_what_was_done_is_in_the_log(admin: httpx.Client) -> None:
    """With the key that did it."""
    made = account(admin, "logged")
    [newest] = done(admin.get("/v1/admin/audit", params={"limit": 1}))["data"]

    assert (newest["action"], newest["subject"]) == ("accounts.create", made["id"])
    assert newest["details"]["name"] == "logged"
    assert newest["actor"].startswith("key_")


@pytest.mark.parametrize(
    "path, body, field",
    [
        ("accounts", {}, "name"),
        ("accounts", {"name": ""}, "name"),
        ("accounts", {"name": "office"}, "name"),
        ("accounts", {"name": "x", "limit": {}}, "limit"),
        ("accounts", {"name": "x", "limits": {"concurrency": 0}}, "limits.concurrency"),
        ("accounts", {"name": "x", "limits": {"concurrency": "5"}}, "limits.concurrency"),
        ("accounts", {"name": "x", "limits": {"rpm": 1}}, "limits.rpm"),
        ("keys", {}, "account_id"),
        ("keys", {"account_id": "A", "scopes": ["root"]}, "scopes[0]"),
        ("keys", {"account_id": "A", "scopes": []}, "scopes"),
        ("keys", {"account_id": "A", "scopes": ["admin", "admin"]}, "scopes"),
        ("keys", {"account_id": "A", "models": ["a*b"]}, "models[0]"),
        ("keys", {"account_id": "A", "models": []}, "models"),
        ("keys", {"account_id": "A", "credit_limit": -1}, "credit_limit"),
        ("keys", {"account_id": "A", "credit_period": "year"}, "credit_period"),
        ("keys", {"account_id": "A", "expires_at": "soon"}, "expires_at"),
        ("credits", {"account_id": "A"}, "credits"),
        ("credits", {"account_id": "A", "credits": True}, "credits"),
        ("credits", {"account_id": "A", "credits": "much"}, "credits"),
        ("credits", {"account_id": "A", "credits": 1e-10}, "credits"),
        ("credits", {"account_id": "A", "credits": 10**10}, "credits"),
        ("credits", {"account_id": "A", "credits": -1}, "credits"),
        ("credits", {"account_id": "A", "credits": 1, "note": "\0"}, "note"),
        ("credits", {"account_id": "A", "credits": 1, "reference": ""}, "reference"),
    ],
    ids=str,
)
def test_a_mistake_is_named(
    admin: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    """400, with the field."""
    if "account_id" in body:
        [newest] = done(admin.get("/v1/admin/accounts", params={"limit": 1}))["data"]
        body = {**body, "account_id": newest["id"]}

    assert refused(admin.post(f"/v1/admin/{path}", json=body), 400)[1] == field


def test_what_is_not_there_is_404(admin: httpx.Client) -> None:
    """Whatever its name is made of."""
    for wrong in ("nope", "acct_" + "0" * 26, "%00", "acct_%00" + "0" * 25, "%ed%a0%80"):
        assert admin.get(f"/v1/admin/accounts/{wrong}").status_code == 404
        assert admin.post(f"/v1/admin/accounts/{wrong}/disable").status_code == 404
        assert admin.get(f"/v1/admin/credits?account_id={wrong}").status_code == 404
        assert admin.get(f"/v1/admin/keys?account_id={wrong}").status_code == 404
        key_id = wrong.replace("acct_", "key_")
        assert admin.get(f"/v1/admin/keys/{key_id}").status_code == 404
        assert admin.post(f"/v1/admin/keys/{key_id}/rotate").status_code == 404
        for path in ("accounts", "keys", "audit"):
            assert admin.get(f"/v1/admin/{path}?after={wrong}").status_code in (200, 400)
    unknown = {"account_id": "acct_" + "0" * 26, "credits": 1}
    assert refused(admin.post("/v1/admin/credits", json=unknown), 404)[1] == "account_id"
    assert refused(admin.post("/v1/admin/keys", json={"account_id": "x"}), 404)[1] == "account_id"


def test_a_log_line_never_has_a_key(service: Stack, admin: httpx.Client) -> None:
    """Neither the one that was shown nor the one that asked."""
    minted = key(admin, account(admin, "secretive")["id"])
    asking = admin.headers["authorization"].removeprefix("Bearer ")
    [log] = service.home.glob("api-*.log")

    assert eventually(lambda: "/v1/admin/keys" in log.read_text())
    for text in (minted["api_key"], asking):
        assert text.rpartition("_")[2] not in log.read_text()
