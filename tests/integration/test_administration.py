"""What administrators do, on a real database: it takes effect, once, and is written down."""

from typing import Any

import pytest
from sqlmodel import Session, select

from shared import accounts, administration, audit, clock, keys, ledger, statements, trail
from shared.administration import LARGEST, MOST, nano_credits
from shared.errors import IdempotencyKeyReused, InvalidApiKey, InvalidRequest, NotFound
from shared.prices import NANO
from shared.tables import Account, ApiKey, LedgerEntry
from tests.factories import HOUR, Sessions

WHO = "cli:ada"
TERMS: keys.Terms = {
    "name": "laptop",
    "scopes": ["completions", "admin"],
    "models": ["gpt-5", "openrouter/*"],
    "limits": {"concurrency": 3},
    "credit_limit": 5 * NANO,
    "credit_period": "day",
    "expires_at": 4_000_000_000_000,
}


def logged(sessions: Sessions) -> list[tuple[str, str, str, dict[str, Any]]]:
    """The audit log, oldest first."""
    with sessions() as session:
        rows, _ = trail.entries(session, after=None, limit=100)
    return [(row.actor, row.action, row.subject, row.details) for row in reversed(rows)]


def credits_of(sessions: Sessions, account_id: str) -> int:
    """What it can spend, in credits."""
    with sessions() as session:
        return statements.balance(session, account_id).available // NANO


@pytest.fixture
def account_id(sessions: Sessions) -> str:
    """Somebody's account."""
    with sessions() as session:
        return accounts.ensure(session, "ours").id


def test_an_account_is_made_limited_disabled_and_enabled(sessions: Sessions) -> None:
    """While it is disabled its keys are refused; each step is in the log."""
    with sessions() as session:
        made = administration.create_account(session, WHO, name="ours")
        _, text = keys.create(session, account="ours")
    with sessions() as session:
        administration.limit_account(session, WHO, made.id, {"concurrency": 2})
        administration.disable_account(session, WHO, made.id)
    with sessions() as session, pytest.raises(InvalidApiKey, match="disabled"):
        keys.authenticate(session, text)
    with sessions() as session:
        administration.enable_account(session, WHO, made.id)

    with sessions() as session:
        _, account = keys.authenticate(session, text)
    assert account.limits == {"concurrency": 2}
    assert logged(sessions) == [
        (WHO, "accounts.create", made.id, {"name": "ours", "limits": None}),
        (WHO, "accounts.limit", made.id, {"limits": {"concurrency": 2}}),
        (WHO, "accounts.disable", made.id, {}),
        (WHO, "accounts.enable", made.id, {}),
    ]


def test_a_name_is_one_accounts(sessions: Sessions, account_id: str) -> None:
    """The refusal names the field, and leaves no word in the log."""
    with sessions() as session, pytest.raises(InvalidRequest) as raised:
        administration.create_account(session, WHO, name="ours")

    assert raised.value.param == "name"
    assert logged(sessions) == []


@pytest.mark.parametrize("wrong", ["", "acct_nope", "acct_" + "0" * 26, "acct_\0" + "0" * 25])
def test_what_is_not_there_cannot_be_changed(sessions: Sessions, wrong: str) -> None:
    """Whatever the text is, and nothing is written down."""
    key_id = wrong.replace("acct_", "key_")
    for work in (
        lambda session: administration.limit_account(session, WHO, wrong, None),
        lambda session: administration.disable_account(session, WHO, wrong),
        lambda session: administration.enable_account(session, WHO, wrong),
        lambda session: administration.grant(session, WHO, wrong, 1),
        lambda session: administration.change_key(session, WHO, key_id, name="new"),
        lambda session: administration.rotate_key(session, WHO, key_id),
        lambda session: administration.revoke_key(session, WHO, key_id),
    ):
        with pytest.raises(NotFound), sessions() as session:
            work(session)

    assert logged(sessions) == []


def test_a_key_is_made_on_terms_and_they_are_written_down(sessions: Sessions) -> None:
    """In credits and seconds, and without its text."""
    with sessions() as session:
        key, text = administration.create_key(session, WHO, account="ours", **TERMS)

    with sessions() as session:
        found, _ = keys.authenticate(session, text)
    assert {name: getattr(found, name) for name in TERMS} == TERMS
    [(_, action, subject, details)] = logged(sessions)
    assert (action, subject) == ("keys.create", key.id)
    assert details == {
        **TERMS, "account_id": key.account_id, "credit_limit": "5", "expires_at": 4_000_000_000
    }  # fmt: skip
    assert text.rpartition("_")[2] not in str(logged(sessions))


def test_a_change_of_a_key_leaves_its_other_terms(sessions: Sessions) -> None:
    """Also what it has spent, unless it had no limit until now."""
    with sessions() as session:
        key, _ = keys.create(session, account="ours", **TERMS)
        key.spent = 7
        other, _ = keys.create(session, account="ours")
        other.spent = 7
    with sessions() as session:
        administration.change_key(session, WHO, key.id, models=None, credit_limit=9 * NANO)
        administration.change_key(session, WHO, other.id, credit_limit=1)

    with sessions() as session:
        found = keys.find(session, key.id)
        assert {name: getattr(found, name) for name in TERMS} == {
            **TERMS, "models": None, "credit_limit": 9 * NANO
        }  # fmt: skip
        assert found.spent == 7
        assert keys.find(session, other.id).spent == 0
    assert logged(sessions)[0][3] == {"models": None, "credit_limit": "9"}


def test_a_rotated_key_and_its_successor_overlap(sessions: Sessions) -> None:
    """Both are good until the old one ends; the new one has all its terms."""
    with sessions() as session:
        key, text = keys.create(session, account="ours", **TERMS)
    with sessions() as session:
        successor, new = administration.rotate_key(session, WHO, key.id, overlap_ms=HOUR)

    with sessions() as session:
        old, _ = keys.authenticate(session, text)
        found, _ = keys.authenticate(session, new)
        assert old.expires_at == pytest.approx(clock.now() + HOUR, abs=60_000)
        assert {name: getattr(found, name) for name in TERMS} == TERMS
        assert found.account_id == old.account_id
        assert {found.id, found.public_id}.isdisjoint({old.id, old.public_id})
    assert logged(sessions) == [
        (WHO, "keys.rotate", key.id, {"successor": successor.id, "overlap_seconds": 3600})
    ]


def test_a_key_that_is_rotated_at_once_ends_at_once(sessions: Sessions) -> None:
    """And cannot be rotated again, nor can a revoked one."""
    with sessions() as session:
        key, text = keys.create(session, account="ours")
        revoked, _ = keys.create(session, account="ours")
        keys.revoke(session, revoked.id)
    with sessions() as session:
        administration.rotate_key(session, WHO, key.id)

    with sessions() as session, pytest.raises(InvalidApiKey, match="expired"):
        keys.authenticate(session, text)
    for ended in (key, revoked):
        with pytest.raises(InvalidRequest, match="has ended"), sessions() as session:
            administration.rotate_key(session, WHO, ended.id)


def test_a_rotation_never_prolongs_a_key(sessions: Sessions) -> None:
    """One that would have ended within the overlap still does."""
    soon = clock.now() + HOUR
    with sessions() as session:
        key, _ = keys.create(session, account="ours", expires_at=soon)
        administration.rotate_key(session, WHO, key.id, overlap_ms=2 * HOUR)

    with sessions() as session:
        assert keys.find(session, key.id).expires_at == soon


def test_a_revoked_key_is_written_down(sessions: Sessions) -> None:
    """With who did it."""
    with sessions() as session:
        key, _ = keys.create(session, account="ours")
        administration.revoke_key(session, WHO, key.id)

    assert logged(sessions) == [(WHO, "keys.revoke", key.id, {})]


def test_credits_are_granted_and_taken(sessions: Sessions, account_id: str) -> None:
    """The ledger and the log have both, and the books are in order."""
    with sessions() as session:
        administration.grant(session, WHO, account_id, 5 * NANO, note="Invoice 7")
        entry = administration.grant(session, WHO, account_id, -2 * NANO)

    assert credits_of(sessions, account_id) == 3
    assert logged(sessions)[1][1:3] == ("credits.grant", account_id)
    assert logged(sessions)[1][3] == {
        "credits": "-2", "note": "", "reference": None, "entry": entry.id
    }  # fmt: skip
    assert not audit.examine(sessions.engine).flaws


@pytest.mark.parametrize("nano", [-3 * NANO - 1, MOST])
def test_an_account_has_neither_less_than_nothing_nor_more_than_can_be_counted(
    sessions: Sessions, account_id: str, nano: int
) -> None:
    """The refusal names the field, and nothing moves."""
    with sessions() as session:
        ledger.grant(session, account_id, 3 * NANO, note="")
    with pytest.raises(InvalidRequest) as raised, sessions() as session:
        administration.grant(session, WHO, account_id, nano)

    assert raised.value.param == "credits"
    assert credits_of(sessions, account_id) == 3
    assert logged(sessions) == []


def test_a_reference_counts_once(sessions: Sessions, account_id: str) -> None:
    """However often it is sent, also by several at once; another account may have the same."""
    with sessions() as session:
        other = accounts.ensure(session, "theirs").id

    def work(session: Any) -> str:
        return administration.grant(
            session, WHO, account_id, 5 * NANO, note="Invoice", reference="inv-7"
        ).id

    granted = sessions.at_once(*[work] * 4)
    with sessions() as session:
        again = work(session)
        administration.grant(session, WHO, other, 5 * NANO, note="Invoice", reference="inv-7")

    assert set(granted) == {again}
    assert credits_of(sessions, account_id) == credits_of(sessions, other) == 5
    assert len(logged(sessions)) == 2
    with sessions() as session:
        assert len(session.exec(select(LedgerEntry)).all()) == 2


def test_a_reference_stands_for_one_grant(sessions: Sessions, account_id: str) -> None:
    """Another amount under it is a mistake, not a repetition."""
    with sessions() as session:
        administration.grant(session, WHO, account_id, 5, reference="inv-7")
    with pytest.raises(IdempotencyKeyReused) as raised, sessions() as session:
        administration.grant(session, WHO, account_id, 6, reference="inv-7")

    assert raised.value.param == "reference"


@pytest.mark.parametrize(
    "said, nano",
    [
        (1, NANO),
        (0.1, NANO // 10),
        (-0.5, -NANO // 2),
        (1e-9, 1),
        (1e9, LARGEST),
        ("123456789.123456789", 123_456_789_123_456_789),
        ("-0.000000001", -1),
    ],
)
def test_an_amount_is_exact(said: int | float | str, nano: int) -> None:
    """To the nano-credit."""
    assert nano_credits(said) == nano


@pytest.mark.parametrize(
    "said",
    [1e-10, 10**9 + 1, 123456789.123456789, "1e3", "", " 1", "+1", "١", "NaN", "0.0000000001"],
)
def test_an_amount_that_cannot_be_exact_is_refused(said: int | float | str) -> None:
    """With what would be one."""
    with pytest.raises(ValueError, match="should"):
        nano_credits(said)


def test_lists_are_read_in_pages(sessions: Sessions) -> None:
    """Newest first; a cursor from elsewhere is refused."""
    with sessions() as session:
        for number in range(3):
            account = administration.create_account(session, WHO, name=f"a{number}")
            administration.create_key(session, WHO, account=account.name)
            administration.grant(session, WHO, account.id, 1, reference="first")

    def pages(read: Any) -> list[str]:
        found: list[str] = []
        more = True
        while more:
            with sessions() as session:
                rows, more = read(session, after=found[-1] if found else None, limit=2)
            assert len(rows) <= 2
            found += [row.id for row in rows]
        return found

    with sessions() as session:
        account_ids = sorted((row.id for row in session.exec(select(Account))), reverse=True)
        key_ids = sorted((row.id for row in session.exec(select(ApiKey))), reverse=True)
    assert pages(accounts.page) == account_ids
    assert pages(keys.page) == key_ids
    assert len(set(pages(trail.entries))) == 9

    def ledger_entries(session: Session, **place: Any) -> Any:
        return statements.entries(session, account_ids[0], **place)

    for read in (accounts.page, keys.page, trail.entries, ledger_entries):
        for wrong in ("", "\0", "nope", "\ud800"):
            with sessions() as session, pytest.raises(InvalidRequest):
                read(session, after=wrong, limit=1)
