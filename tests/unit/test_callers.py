"""What a caller may ask for."""

import pytest

from api.callers import Caller
from shared.catalog import Model
from shared.errors import ModelNotAllowed, PermissionDenied

MODEL = Model(
    name="openrouter/meta/llama",
    upstream="openrouter",
    context_window=8192,
    max_output_tokens=4096,
    free=True,
    aliases=["llama", "small"],
)


def caller(*models: str, scopes: frozenset[str] = frozenset()) -> Caller:
    """Whose key is for these models."""
    return Caller("acct_1", "key_1", scopes, models)


@pytest.mark.parametrize(
    "allowed",
    ["openrouter/meta/llama", "llama", "small", "openrouter/*", "openrouter/meta/l*", "ll*", "*"],
)
def test_a_model_is_allowed_by_name_alias_or_pattern(allowed: str) -> None:
    """Whichever of its names the key has, all of them may be asked for."""
    caller("other", allowed).check_model(MODEL)


@pytest.mark.parametrize(
    "allowed", ["openrouter", "meta/*", "openrouter/meta/llama-2", "LLAMA", "llam", "openrouter/?*"]
)
def test_a_model_that_the_key_does_not_name_is_refused(allowed: str) -> None:
    """403, with the field."""
    with pytest.raises(ModelNotAllowed) as raised:
        caller(allowed).check_model(MODEL)

    error = raised.value
    assert (error.status, error.code, error.type) == (403, "model_not_allowed", "permission_error")
    assert error.param == "model"


def test_a_key_without_models_is_for_every_model() -> None:
    """One with an empty list would be for none."""
    assert Caller("acct_1", None, frozenset()).may_use(MODEL)
    assert not caller().may_use(MODEL)


def test_a_scope_is_had_or_not() -> None:
    """One does not imply the other."""
    caller(scopes=frozenset({"admin"})).check_scope("admin")
    with pytest.raises(PermissionDenied):
        caller(scopes=frozenset({"admin"})).check_scope("completions")
