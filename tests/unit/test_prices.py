"""What a completion costs, to the nano-credit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import prices
from shared.catalog import Model
from shared.prices import Prices

SONNET = Model(
    upstream="anthropic",
    context_window=200_000,
    max_output_tokens=8192,
    input_price=300.0,
    cached_input_price=30.0,
    cache_write_price=375.0,
    output_price=1500.0,
)
CHEAP = SONNET.model_copy(update={"input_price": 3.75, "output_price": 0.1})
FREE = Model(upstream="local", context_window=8192, max_output_tokens=4096, free=True)
REQUEST = {"messages": [{"role": "user", "content": "x" * 3000}], "max_tokens": 100}


def usage(prompt: int, completion: int, cached: int = 0, written: int = 0) -> dict[str, Any]:
    """Usage as upstreams report it."""
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": details,
    }


def test_every_token_is_priced_once() -> None:
    """10,000 in, of which 2,000 from the cache and 1,000 into it, 500 out: 3.285 credits."""
    cost = Prices.of(SONNET).cost(usage(10_000, 500, cached=2_000, written=1_000))

    assert cost == 3_285_000_000


def test_a_fraction_is_rounded_up_once() -> None:
    """Not for every token."""
    cheap = SONNET.model_copy(update={"input_price": 0.0004, "output_price": 0.0003})

    assert Prices.of(cheap).cost(usage(1, 1)) == 1
    assert Prices.of(cheap).cost(usage(1000, 1000)) == 700


@pytest.mark.parametrize(
    "reported",
    [{}, {"prompt_tokens": None}, {"prompt_tokens": -5}, {"prompt_tokens_details": None}],
)
def test_strange_usage_costs_nothing(reported: dict[str, Any]) -> None:
    """And never pays out."""
    assert Prices.of(SONNET).cost(reported) == 0


@given(st.integers(0, 9999), st.integers(0, 9999), st.integers(0, 19999), st.integers(0, 19999))
def test_no_usage_costs_more_than_its_bound(
    prompt: int, completion: int, cached: int, written: int
) -> None:
    """However the input is divided, and whatever an upstream claims of its cache."""
    priced = Prices.of(SONNET)

    assert (
        0
        <= priced.cost(usage(prompt, completion, cached, written))
        <= priced.bound(prompt, completion)
    )


def test_the_dearest_of_a_chain_is_held() -> None:
    """Whichever of them answers, it is paid for."""

    def most(*chain: Model) -> int:
        return prices.most(REQUEST, chain, prompt=1_000)

    assert most(CHEAP) < most(CHEAP, SONNET) == most(SONNET)
    assert most(FREE) == 0


def test_output_is_capped_by_request_and_model() -> None:
    """For every choice; the newer name wins."""
    assert prices.output_cap({}, SONNET) == 8192
    assert prices.output_cap({"max_tokens": 99_999}, SONNET) == 8192
    assert prices.output_cap({"max_tokens": 50, "max_completion_tokens": 10}, SONNET) == 10
    assert prices.output_cap({"max_tokens": 50, "n": 3}, SONNET) == 150


def test_output_is_what_the_prompt_surely_leaves_of_the_window() -> None:
    """At least eight characters a token: 192,000 tokens, and 8,000 are left. Never none."""
    story = "Once upon "

    def cap(characters: int, **more: Any) -> int:
        content = (story * (characters // len(story) + 1))[:characters]
        asked = {"messages": [{"role": "user", "content": content}], **more}
        return prices.choice_cap(asked, SONNET)

    assert cap(8 * 191_000) == 8_192
    assert cap(8 * 192_000) == 8_000
    assert cap(8 * 192_000, max_tokens=100) == 100
    assert cap(8 * 200_000) == 1


def test_no_more_is_held_than_fits_into_the_window() -> None:
    """Whatever the request allows."""
    asked = {"messages": [{"role": "user", "content": "Up, up. " * 192_000}], "max_tokens": 8_192}

    held = prices.most(asked, [SONNET], prompt=200_000)
    assert held == Prices.of(SONNET).bound(200_000, 8_000)


def test_a_run_of_one_letter_takes_nothing_from_the_output() -> None:
    """For it may be a single token."""
    dashes = {"messages": [{"role": "user", "content": "-" * 8 * 195_000}]}

    assert prices.choice_cap(dashes, SONNET) == 8_192


def test_input_is_estimated_generously() -> None:
    """Three bytes a token, something for each message, and an image whatever its size."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 900_000}}
    pictured = {"messages": [{"role": "user", "content": [image]}]}

    assert 1000 < prices.prompt_tokens(REQUEST) < 1050
    assert 1600 < prices.prompt_tokens(pictured) < 1700
    assert prices.prompt_tokens({**REQUEST, "tools": [{"a": "x" * 300}]}) > 1100


def test_input_never_exceeds_the_window() -> None:
    """What does not fit is refused upstream, and costs nothing."""
    held = prices.most({"max_tokens": 1}, [SONNET], prompt=3_000_000)

    assert held == Prices.of(SONNET).bound(200_000, 1)
