"""RFC 7240: `Prefer: respond-async, wait=20`."""

import re
from dataclasses import dataclass

LONGEST = 500
"""Characters of the header that are read; beyond lies nothing but mischief."""

PREFERENCE = re.compile(
    r"""\s*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)
        (?:\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s,;"]*)))?
        (?:\s*;(?:[^,"]|"(?:[^"\\]|\\.)*")*)?      # parameters: none of ours has any
        \s*(?:,|$)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Prefer:
    """How long a caller likes to wait for an answer."""

    respond_async: bool = False
    """Rather take 202 than wait on."""
    wait: float | None = None
    """Seconds; the server's own limit still holds."""


def parse_prefer(header: str | None) -> Prefer:
    """The preferences in a header (several joined by commas); what is not understood is ignored.

    Of a preference given twice the first counts, as the RFC says.
    """
    found: dict[str, str] = {}
    position, text = 0, (header or "")[:LONGEST]
    while position < len(text):
        preference = PREFERENCE.match(text, position)
        if preference is None:
            comma = text.find(",", position)
            position = comma + 1 if comma >= 0 else len(text)
            continue
        quoted, token = preference["quoted"], preference["token"]
        found.setdefault(
            preference["name"].lower(), (quoted if quoted is not None else token) or ""
        )
        position = preference.end()
    wait = found.get("wait", "")
    seconds = float(wait) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", wait) else None
    return Prefer(respond_async=found.get("respond-async") == "", wait=seconds)
