"""Worker processes, their leases, and who leads them."""

from sqlalchemy import JSON, BigInteger
from sqlmodel import Field, SQLModel

from shared import clock
from shared.tables.indexes import partial


class Worker(SQLModel, table=True):
    """One registration of a worker process, and its lease. Presumed dead once, dead for good."""

    __tablename__ = "workers"
    __table_args__ = (partial("ix_workers_alive", "id", condition="alive"),)

    id: str = Field(primary_key=True)
    host: str
    pid: int
    beats: int = Field(default=0, sa_type=BigInteger)
    """Grows while the process lives; the reaper watches it on a clock of its own."""
    alive: bool = True
    slots: int = 0
    """Jobs it may have in flight."""
    models: list[str] = Field(default_factory=list, sa_type=JSON)
    """What this process can serve: their upstreams' keys are at hand."""
    started_at: int = Field(default_factory=clock.now, sa_type=BigInteger)
    ended_at: int | None = Field(default=None, sa_type=BigInteger)


class Leader(SQLModel, table=True):
    """Which process runs the control loops."""

    __tablename__ = "leaders"

    role: str = Field(primary_key=True)
    holder: str
    terms: int = Field(default=0, sa_type=BigInteger)
    """Grows while the holder lives; the others watch it on clocks of their own."""
