"""A request that names no limit of its output gets one that can be paid for, when it must."""

from dataclasses import replace
from typing import Any, Final

import orjson

from shared.errors import InsufficientCredits, KeyLimitReached
from shared.jobs import Submission
from shared.prices import NANO, Prices

LEAST_TOKENS: Final = 256
"""An answer that may be no longer than less is of no use."""


def smaller(new: Submission, refusal: InsufficientCredits | KeyLimitReached) -> Submission | None:
    """The same job with as much output as can be paid for; None when the refusal has to stand.

    That is when the request names a limit itself, when too little is left, or when what is missing
    is only set aside for other jobs. The refusal says from now on how many tokens would do.
    """
    request: dict[str, Any] = orjson.loads(new.body)
    chain = [Prices.kept(snapshot) for snapshot in (new.prices or {}).values()]
    prompt, answers = new.prompt_tokens, request.get("n") or 1
    left = round(refusal.details["available"] * NANO)
    tokens = max(0, min(each.affords(left, prompt) for each in chain if each.output) // answers)
    refusal.details["max_affordable_tokens"] = tokens
    named = request.get("max_tokens") or request.get("max_completion_tokens")
    if named or tokens < LEAST_TOKENS or refusal.code == "credits_held":
        return None
    body = orjson.dumps({**request, "max_completion_tokens": tokens})
    hold = max(each.bound(prompt, tokens * answers) for each in chain)
    return replace(new, body=body, hold=hold)
