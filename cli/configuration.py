"""Read a process's settings from the environment, and say plainly what is wrong with them."""

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from cli.failure import USAGE, Failure

if TYPE_CHECKING:
    from shared.settings import StoreSettings

S = TypeVar("S", bound="StoreSettings")


def read(kind: type[S], **given: Any) -> S:
    """The settings of one process; what is `given` and not None overrides the environment.

    Raises `Failure` that names every variable at fault.
    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise Failure("\n".join(_explain(error)), code=USAGE) from None


def _explain(error: ValidationError) -> list[str]:
    # The input is left out on purpose: it may be a password.
    return [
        f"SLUICE_{'.'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}."
        for fault in error.errors(include_url=False, include_input=False)
    ]
