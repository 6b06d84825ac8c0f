"""Statements that are kept as text: what they return, and what they raise, on each database."""

import pytest
from sqlalchemy import bindparam, update
from sqlalchemy.exc import IntegrityError, NotSupportedError
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

OFTEN = 9
"""Times after which the driver has prepared a statement."""


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


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_the_server_has_prepared_outlives_a_read(sessions: Sessions) -> None:
    """Every read is undone in the end, and a writer may have the connection next."""
    with sessions.engine.connect() as connection:
        for _ in range(OFTEN):
            connection.exec_driver_sql("SELECT 1")
        connection.rollback()

        known = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 1'"
        assert connection.exec_driver_sql(known).scalar_one() == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_no_longer_fits_is_prepared_anew(sessions: Sessions) -> None:
    """A newer release may have changed a table under a connection that lives on."""
    everything = "SELECT * FROM catalogues"
    with sessions.engine.connect() as connection, sessions.engine.connect() as other:
        other.exec_driver_sql("CREATE TABLE catalogues (name text)")
        other.commit()
        for _ in range(OFTEN):
            connection.exec_driver_sql(everything)
        connection.rollback()
        other.exec_driver_sql("ALTER TABLE catalogues ADD COLUMN price int")
        other.commit()

        with pytest.raises(NotSupportedError):
            connection.exec_driver_sql(everything)
        connection.rollback()
        assert connection.exec_driver_sql(everything).keys() == ["name", "price"]


def test_the_connection_that_was_used_last_is_used_next(sessions: Sessions) -> None:
    """It has everything prepared, and what it read at hand."""
    with sessions.engine.connect() as last, sessions.engine.connect():
        used = last.connection.driver_connection

    with sessions.engine.connect() as connection:
        assert connection.connection.driver_connection is used
