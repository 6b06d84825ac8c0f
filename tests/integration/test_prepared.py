"""Statements that are kept as text: what they return, and what they raise, on each database."""

import pytest
from sqlalchemy import bindparam, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from shared import prepared
from shared.tables import Job
from tests.factories import Sessions, submitted

RENAMED = (
    update(Job)
    .where(col(Job.id) == bindparam("wanted"))
    .values(model=bindparam("named"))
    .returning(col(Job.model), col(Job.id))
)


@pytest.mark.parametrize("many", [1, 3])
def test_each_says_what_it_changed(sessions: Sessions, many: int) -> None:
    """In order; one that changes nothing says so."""
    with sessions() as session:
        ids = [submitted(session).id for _ in range(many)]
        ids[-1:] = ["nobody"]
        named = [{"wanted": each, "named": f"m{number}"} for number, each in enumerate(ids)]
        found = prepared.each(session.connection(), RENAMED, named)

    assert found == [*((f"m{number}", each) for number, each in enumerate(ids[:-1])), None]


@pytest.mark.parametrize("many", [1, 3])
def test_what_each_raises_is_what_sqlalchemy_raises(sessions: Sessions, many: int) -> None:
    """So whoever asked learns whether it was the statement's fault or the database's."""
    with sessions() as session:
        ids = [submitted(session).id for _ in range(many)]
        named = [{"wanted": each, "named": None} for each in ids]
        with pytest.raises(IntegrityError):
            prepared.each(session.connection(), RENAMED, named)
        session.rollback()
