"""The decoder: causal, recomputed or not, in half precision, with and without what a family may have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.models.decoder import Decoder, empty_cache
from tests import small_lm

TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 97, (2, 7)))


@pytest.fixture(scope="module")
def lm():
    return small_lm.decoder(tied=False, qk_norm=True, windows=(None, 3, None))


def test_no_token_sees_what_comes_after_it(lm):
    model, variables = lm
    before = model.apply(variables, TOKENS)
    after = model.apply(variables, TOKENS.at[:, 4].add(1))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(before[:, 4:] - after[:, 4:]).max((0, 2)) > 0).all()


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_is_recomputed_does_not_change_the_gradient(lm, remat):
    model, variables = lm
    again = Decoder(model.config, remat=remat)

    def loss(m):
        return lambda v: jax.nn.log_softmax(m.apply(v, TOKENS)).sum()

    one, other = (jax.grad(loss(m))(variables) for m in (model, again))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_half_precision_stays_near_and_logits_are_float32(lm):
    model, variables = lm
    half = Decoder(model.config, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        out = half.apply(jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables), TOKENS)
    exact = model.apply(variables, TOKENS)
    assert out.dtype == jnp.float32
    correlation = np.corrcoef(np.asarray(out).ravel(), np.asarray(exact).ravel())[0, 1]
    assert correlation > 0.99


def test_some_layers_alone_are_those_of_the_whole(lm):
    model, variables = lm
    states, _ = model.apply(variables, TOKENS, collect=True, method="hidden")
    for layer in (1, 2, 3):
        part, _ = model.apply(variables, TOKENS, until=layer, method="hidden")
        np.testing.assert_allclose(part, states[layer], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"windows": (None, 3, None)}, {"attention_softcap": 2.0, "logit_softcap": 5.0}, {"qk_norm": True}],
    ids=["plain", "window", "softcap", "qk_norm"],
)
def test_a_cache_gives_what_the_whole_sequence_gives(options):
    """First tokens without positions, then one token at a time, then several at once."""
    model, variables = small_lm.decoder(**options)
    whole, _ = model.apply(variables, TOKENS, method="hidden")
    cache, parts, at = empty_cache(model.config, 2, 9), [], 0
    for number in (3, 1, 1, 2):
        tokens = TOKENS[:, at : at + number]
        places = None if at == 0 else jnp.broadcast_to(at + jnp.arange(number)[None], (2, number))
        hidden, cache = model.apply(variables, tokens, positions=places, cache=cache, method="hidden")
        parts.append(hidden)
        at += number
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)
