"""Which process runs the control loops: one at a time, and soon another when it goes away."""

from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from shared.tables import Leader


def lead(session: Session, role: str, holder: str, seen: tuple[str, int] | None) -> tuple[str, int]:
    """Hold a role, renew it, or take it over from a holder last seen at `seen`.

    Returns who holds it and in which term. The caller passes `seen` only after it has watched
    that holder stand still for long enough on its own monotonic clock.
    """
    now = session.get(Leader, role)
    if now is None:
        try:
            with session.begin_nested():
                session.add(Leader(role=role, holder=holder))
        except IntegrityError:  # another was faster
            return lead(session, role, holder, seen)
        return holder, 0
    if now.holder == holder or (now.holder, now.terms) == seen:
        taken = update(Leader).where(
            col(Leader.role) == role,
            col(Leader.holder) == now.holder,
            col(Leader.terms) == now.terms,
        )
        # Left alone, `now` would say what we wished for, not what came of it.
        taken = taken.values(holder=holder, terms=now.terms + 1)
        session.execute(taken, execution_options={"synchronize_session": False})
        session.refresh(now)
    return now.holder, now.terms


def resign(session: Session, role: str, holder: str) -> None:
    """Give a role up, so that whoever asks next has it."""
    session.execute(delete(Leader).where(col(Leader.role) == role, col(Leader.holder) == holder))
