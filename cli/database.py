"""The database, for commands that work on its rows themselves."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlmodel import Session

from cli import configuration
from cli.failure import FAILED, USAGE, Failure
from shared import db, revisions
from shared.errors import ServiceError
from shared.settings import StoreSettings


@contextmanager
def opened(settings: StoreSettings) -> Iterator[Engine]:
    """An engine on migrated tables. Raises `Failure` when the database is not ready."""
    with as_failures(settings):
        current, newest = revisions.compare(settings.database)
        if current != newest:
            raise Failure(
                f"The tables of {shown(settings)} are at revision {current or 'none'}, not "
                f"{newest}. Run `sluice migrate` (`sluice up` does it by itself).",
                code=FAILED,
            )
        engine = db.connect(settings.database)
        try:
            yield engine
        finally:
            engine.dispose()


@contextmanager
def transaction(settings: StoreSettings) -> Iterator[Session]:
    """A session that commits at the end. Raises `Failure` when the database is not ready."""
    with (
        opened(settings) as engine,
        Session(engine, expire_on_commit=False) as session,
        session.begin(),
    ):
        yield session


@contextmanager
def administration() -> Iterator[tuple[Session, str]]:
    """A transaction, and who we are in the audit log. A refusal becomes a `Failure`."""
    with transaction(configuration.read(StoreSettings)) as session:
        try:
            yield session, f"cli:{_user()}"
        except ServiceError as error:
            raise Failure(error.message, code=FAILED) from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


@contextmanager
def as_failures(settings: StoreSettings) -> Iterator[None]:
    """Say in one sentence what the database's driver complains about."""
    try:
        yield
    except ArgumentError:
        raise Failure("SLUICE_DATABASE_URL is not a database URL.", code=USAGE) from None
    except DBAPIError as error:
        raise Failure(f"The database {shown(settings)} says: {error.orig}", code=FAILED) from None


def shown(settings: StoreSettings) -> str:
    """The database's URL without its password."""
    return make_url(settings.database).render_as_string(hide_password=True)
