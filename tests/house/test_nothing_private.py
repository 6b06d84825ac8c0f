"""What is published holds no secret, and nothing of the machine it was written on."""

import re

from tests.house.repository import files, shown

PATHS = re.compile(r"(?<![\w.])/(?:(?:home|Users)/[a-z]\w*|root)/|[A-Z]:\\Users\\")
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bak_[0-9a-z]{8,}_[0-9a-z]{24,}"
    r"|\bsk-[A-Za-z0-9_-]{24,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}"
    r"|\bwhsec_[A-Za-z0-9+/]{32,}"
    r"|\w+://[^\s:/@$\"'{}]+:[^\s@$\"'{}]{12,}@"
)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    """A home folder in a file says who wrote it, and works for nobody else."""
    assert _found(PATHS) == {}


def test_no_file_holds_a_secret() -> None:
    """A key that was published once is published for good."""
    assert _found(SECRETS) == {}


def _found(pattern: re.Pattern[str]) -> dict[str, str]:
    found = {}
    for path in files():
        match = pattern.search(path.read_text(encoding="utf-8", errors="ignore"))
        if match:
            # Enough to find it; a log is no place for the rest.
            found[shown(path)] = match[0][:12]
    return found
