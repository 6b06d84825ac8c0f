"""How much a key, an account or a model may ask for at once and in a minute, and have running."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=10**12)]


class Limits(BaseModel):
    """Each is optional; what is not said is not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Of prompt and completion together."""
    concurrency: Count | None = None
    """Jobs of held and streamed requests that have not ended."""


class AccountLimits(Limits):
    """What holds for all keys of an account together, and how its jobs take turns with others'."""

    running: Count | None = None
    """Jobs that run at once, over all workers."""
    weight: Annotated[int, Field(ge=1, le=100)] | None = None
    """Its share when jobs wait: twice the weight, twice the jobs. 1 unless said."""
