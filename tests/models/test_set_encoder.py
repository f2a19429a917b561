"""The set encoder: |z| does not track k, and settings that cannot be are named."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from fssa_jax import SetEncoder

D = 16


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
def test_the_size_of_z_does_not_track_k_and_the_published_layer_does(aggregation, comparisons):
    one = comparisons(0, (1, 1), D)
    context = jax.tree.map(lambda x: jnp.repeat(x, 16, axis=1), one)  # the same choice sixteen times

    def growth(**settings):
        encoder = SetEncoder(width=16, latent_dim=D, heads=4, aggregation=aggregation, **settings)
        variables = encoder.init(jax.random.key(1), one)
        sizes = [jnp.linalg.norm(encoder.apply(variables, c).mean) for c in (one, context)]
        return float(sizes[1] / sizes[0])

    assert growth() < 2
    if aggregation == "attention":
        assert growth(pool="sum", prior_choice=False, residual=False) > 4


def test_the_size_of_the_latent_is_the_one_that_was_asked_for(comparisons):
    context = comparisons(0, (2, 3), 5)
    q, _ = SetEncoder(width=16, latent_dim=4, heads=2, gaussian=True).init_with_output(jax.random.key(0), context)
    assert q.mean.shape == q.scale.shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": ("chosen", "margin")}, "'margin'.* got None"),
        ({"width": 10, "heads": 4}, r"width must be a multiple of heads \(4\), got 10"),
        ({"aggregation": "bayes"}, "aggregation must be one of .* got 'bayes'"),
    ],
)
def test_what_cannot_be_is_named(settings, message, comparisons, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    with pytest.raises(ValueError, match=message):
        SetEncoder(**settings).init(jax.random.key(0), comparisons(0, (1, 2), D))
