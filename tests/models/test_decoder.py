"""The decoder: causal, recomputed or not, in half precision, with and without what a family may have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.models.decoder import Decoder, empty_cache, place_sizes
from fssa_jax.ops.adapters import Film
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


@pytest.mark.parametrize("remat", ["none", "full"])
def test_adapters_of_the_last_layers_leave_those_below_alone(lm, remat):
    """Adapters of 2 of 3 layers are those of all with an identity in front; the states below may be given."""
    model = Decoder(lm[0].config, remat=remat)
    variables = lm[1]
    places = place_sizes(model.config, ("query", "residual"))
    keys = jax.random.split(jax.random.key(3), 4)
    last = {
        place: Film(1 + 0.3 * jax.random.normal(a, (2, 2, out)), 0.3 * jax.random.normal(b, (2, 2, out)))
        for (place, _, out), a, b in zip(places, keys[:2], keys[2:], strict=True)
    }
    first = jax.tree.map(jnp.zeros_like, last)
    whole = jax.tree.map(
        lambda x, below, one: jnp.concatenate([one + below[:1], x]),
        last,
        first,
        {place: Film(jnp.ones((1, 2, 1)), jnp.zeros((1, 2, 1))) for place in last},
    )
    expected, _ = model.apply(variables, TOKENS, whole, method="hidden")
    out, _ = model.apply(variables, TOKENS, last, method="hidden")
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.abs(out - model.apply(variables, TOKENS, None, method="hidden")[0]).max() > 0.1
    below, _ = model.apply(variables, TOKENS, until=1, method="hidden")
    again, _ = model.apply(variables, TOKENS, last, start=1, states=below, method="hidden")
    np.testing.assert_allclose(again, expected, atol=1e-5)
    with pytest.raises(ValueError, match="last 2 layers: 2 layers are not run"):
        model.apply(variables, TOKENS, last, start=2, states=below, method="hidden")
    four = jax.tree.map(lambda x: jnp.concatenate([x, x]), last)
    with pytest.raises(ValueError, match="this one has 3"):
        model.apply(variables, TOKENS, four, method="hidden")


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
