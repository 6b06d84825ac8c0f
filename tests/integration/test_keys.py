"""API keys on a real database: minted, proven, revoked, expired."""

from collections.abc import Callable

import pytest
from sqlalchemy import func
from sqlmodel import select

from shared import clock, keys
from shared.errors import InvalidApiKey, NotFound
from shared.keys import Bearer, KeyChanged
from shared.tables import Account, ApiKey
from tests.factories import HOUR, Sessions


def test_a_key_proves_its_account(sessions: Sessions) -> None:
    """The text that was shown once is all it takes."""
    with sessions() as session:
        key, text = keys.create(session, account="ours", name="laptop")

    with sessions() as session:
        found, account = keys.authenticate(session, text)

    assert (found.id, account.id, found.name) == (key.id, key.account_id, "laptop")


def test_the_secret_is_not_kept(sessions: Sessions) -> None:
    """Neither its text nor its letters are anywhere in the row."""
    with sessions() as session:
        key, text = keys.create(session, account="ours")

    secret = text.rpartition("_")[2]
    assert secret not in str(key.model_dump())
    assert secret.encode() not in key.secret_hash


def test_two_keys_of_one_name_share_the_account(sessions: Sessions) -> None:
    """The account is made with its first key."""
    with sessions() as session:
        first, _ = keys.create(session, account="ours")
        second, _ = keys.create(session, account="ours")

    assert first.account_id == second.account_id
    assert first.public_id != second.public_id


def test_a_wrong_secret_is_refused(sessions: Sessions) -> None:
    """A public id alone is worth nothing, nor is any other text."""
    with sessions() as session:
        _, text = keys.create(session, account="ours")
        _, other = keys.create(session, account="ours")
    swapped = text.rpartition("_")[0] + "_" + other.rpartition("_")[2]

    for wrong in (swapped, text[:-1], text + "0", text.upper(), text + "\n", "", "ak__", "\0"):
        with sessions() as session, pytest.raises(InvalidApiKey):
            keys.authenticate(session, wrong)


def test_a_revoked_key_is_refused_for_good(sessions: Sessions) -> None:
    """Revoking it again keeps the first moment."""
    with sessions() as session:
        key, text = keys.create(session, account="ours")
    with sessions() as session:
        revoked_at = keys.revoke(session, key.id).revoked_at

    with sessions() as session, pytest.raises(InvalidApiKey, match="revoked"):
        keys.authenticate(session, text)
    with sessions() as session:
        assert keys.revoke(session, key.id).revoked_at == revoked_at is not None


def test_an_unknown_key_cannot_be_revoked(sessions: Sessions) -> None:
    """It says so."""
    with sessions() as session, pytest.raises(NotFound):
        keys.revoke(session, "key_nope")


def test_a_key_ends_at_its_time(sessions: Sessions) -> None:
    """Until then it works."""
    with sessions() as session:
        _, ended = keys.create(session, account="ours", expires_at=clock.now() - 1)
        _, living = keys.create(session, account="ours", expires_at=clock.now() + HOUR)

    with sessions() as session:
        assert keys.authenticate(session, living)
        with pytest.raises(InvalidApiKey, match="expired"):
            keys.authenticate(session, ended)


CHANGES: dict[str, Callable[[ApiKey, Account], None]] = {
    "revoked": lambda key, _: setattr(key, "revoked_at", clock.now()),
    "expired": lambda key, _: setattr(key, "expires_at", clock.now() - 1),
    "for other models": lambda key, _: setattr(key, "models", ["test"]),
    "of another scope": lambda key, _: setattr(key, "scopes", [keys.ADMIN]),
    "limited": lambda key, _: setattr(key, "limits", {"concurrency": 1}),
    "of a limited account": lambda _, account: setattr(account, "limits", {"running": 1}),
    "of a disabled account": lambda _, account: setattr(account, "disabled_at", clock.now()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_key_that_was_changed_is_not_confirmed(sessions: Sessions, change: str) -> None:
    """One that has merely been used is; one that is asked for with others fails them all."""
    with sessions() as session:
        key, text = keys.create(session, account="ours", expires_at=clock.now() + HOUR)
        other, _ = keys.create(session, account="theirs")
        theirs = Bearer.of(other, session.get_one(Account, other.account_id))
    with sessions() as session:
        remembered = Bearer.of(*keys.authenticate(session, text))
        session.get_one(ApiKey, key.id).spent = 7
        session.get_one(Account, key.account_id).credits = 7
    with sessions() as session:
        keys.confirm(session, [remembered, theirs, remembered])
        CHANGES[change](session.get_one(ApiKey, key.id), session.get_one(Account, key.account_id))

    with sessions() as session:
        keys.confirm(session, [theirs])
        with pytest.raises(KeyChanged):
            keys.confirm(session, [theirs, remembered])


def test_keys_are_listed_by_account(sessions: Sessions) -> None:
    """Looking for an account that is not there does not make it."""
    with sessions() as session:
        ours, _ = keys.create(session, account="ours")
        theirs, _ = keys.create(session, account="theirs")

    with sessions() as session:
        assert [key.id for key in keys.list_keys(session)] == [ours.id, theirs.id]
        assert [key.id for key in keys.list_keys(session, account="ours")] == [ours.id]
        assert keys.list_keys(session, account="nobody") == []
        assert session.exec(select(func.count()).select_from(Account)).one() == 2
