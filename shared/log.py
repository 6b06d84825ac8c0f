"""Logs: structlog for our own lines and for those of the libraries, one line an event.

Prompts, answers and keys are never logged; what looks like a key is blanked all the same.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from shared.settings import StoreSettings

_SECRET = re.compile(r"(ak_[0-9a-z]{12}_)[0-9a-z]+|\b(sk-)[\w-]{8,}|(://[^/:@\s]*:)[^@/\s]+(?=@)")


def configure(settings: StoreSettings, process: str) -> None:
    """Set up logging for this process, which is named in every line."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(process),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        cache_logger_on_first_use=True,
    )
    render: list[Any] = (
        [
            structlog.dev.ConsoleRenderer(
                colors=False,
                pad_event_to=24,
                # The default shows every local variable, prompts and keys among them.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
        if settings.log_format == "console"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    render.append(_blank)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    for chatty in ("celery", "kombu", "amqp", "asyncio", "alembic", "uvicorn", "tornado"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _named(process: str) -> Any:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    return add


def _blank(_: Any, __: str, line: str) -> str:
    """Last of all, so that tracebacks and nested values are blanked as well."""
    return _SECRET.sub(_first_part, line)


def _first_part(match: re.Match[str]) -> str:
    return next(part for part in match.groups() if part) + "…"
