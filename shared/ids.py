"""Job ids: one UUIDv7 in 26 base32 characters, shown under three prefixes."""

import random
import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u
VALUES = {letter: value for value, letter in enumerate(ALPHABET)}
LENGTH = 26
_SHIFTS = range(5 * (LENGTH - 2), -1, -10)
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]

JOB = "job_"
COMPLETION = "chatcmpl-"
LINE = "batch_req_"

# An id opens nothing, so nobody gains by guessing one; and to ask the system for each would let go
# of the interpreter, and wait for it. A process that was forked has a seed of its own.
_bits = random.getrandbits
_in_turn = threading.Lock()
_newest = 0


def new_id() -> str:
    """A UUIDv7 (RFC 9562: 48 bits of Unix milliseconds, then random).

    It sorts by its time and, within this process, after every id made before it: what was
    submitted in an array is listed, and queued, in its order.
    """
    global _newest
    now = time.time_ns() // 1_000_000
    with _in_turn:
        if now <= _newest >> 80:
            number = _newest + 1 + _bits(32)
        else:
            number = now << 80 | _bits(80)
            number = number & ~(0xF << 76) | 0x7 << 76  # version 7
            number = number & ~(0x3 << 62) | 0x2 << 62  # variant of RFC 9562
        _newest = number
    return _base32(number)


def prefixed(prefix: str) -> str:
    """A new id for something that is not a job: `prefixed("key_")`."""
    return prefix + new_id()


def random_letters(count: int) -> str:
    """`count` base32 letters, five random bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(count))


def bare(shown: str) -> str | None:
    """The job behind `job_X`, `chatcmpl-X`, `batch_req_X` or `X`; None when it is no such id."""
    for prefix in (JOB, COMPLETION, LINE):
        if shown.startswith(prefix):
            shown = shown[len(prefix) :]
            break
    return shown if is_prefixed(shown, "") else None


def is_prefixed(shown: str, prefix: str) -> bool:
    """Whether this can be what `prefixed` made."""
    letters = shown.removeprefix(prefix)
    return len(letters) == LENGTH and shown == prefix + letters and VALUES.keys() >= set(letters)


def _base32(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
