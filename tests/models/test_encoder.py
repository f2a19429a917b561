"""Invariants of the encoder, for every aggregation: order, padding, each user's own k, empty contexts, |z|."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import Comparisons, NPEncoder
from fssa_jax.models.encoder import _solve, _variance

ENCODERS = {
    "mean": {"aggregation": "mean"},
    "sum": {"aggregation": "sum", "pair": "linear"},
    "attention": {"aggregation": "attention"},
    "attention-gaussian": {"aggregation": "attention", "gaussian": True},
    "published": {"aggregation": "attention", "pool": "sum", "prior_choice": False, "residual": False},
    "bayes": {"aggregation": "bayes", "observations": ("difference", "responses"), "rounds": 2},
    "bayes-gaussian": {"aggregation": "bayes", "gaussian": True},
    "bayes-kinds": {"aggregation": "bayes", "support": 9, "observations": ("difference", "responses")},
    "bayes-kinds-gaussian": {"aggregation": "bayes", "support": 9, "gaussian": True},
}
D = 16


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return NPEncoder(width=16, latent_dim=D, heads=4, **ENCODERS[request.param])


def encode(encoder, context, seed=0):
    variables = encoder.init(jax.random.key(seed), context)
    # Away from the symmetric start, so that nothing holds only because a parameter is zero.
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
    return jax.tree.map(noise, variables), lambda v, c: encoder.apply(v, c)


def assert_same(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def test_order_of_the_choices_does_not_matter(encoder, comparisons):
    context = comparisons(0, (3, 5), D, [5, 3, 4])
    variables, apply = encode(encoder, context)
    order = jnp.array([4, 0, 3, 1, 2])
    assert_same(apply(variables, context), apply(variables, jax.tree.map(lambda x: x[:, order], context)))


def test_padding_is_not_read(encoder, comparisons):
    context = comparisons(0, (3, 5), D, [5, 2, 0])
    variables, apply = encode(encoder, context)
    pad = lambda x: jnp.where(context.mask[..., None], x, 1e3)  # noqa: E731
    dirty = Comparisons(pad(context.chosen), pad(context.rejected), context.mask)
    assert_same(apply(variables, context), apply(variables, dirty))
    longer = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)], axis=1), context)
    assert_same(apply(variables, context), apply(variables, longer))


def test_each_user_of_a_batch_has_a_k_of_their_own(encoder, comparisons):
    context = comparisons(0, (4, 5), D, [5, 2, 1, 0])
    variables, apply = encode(encoder, context)
    batch = apply(variables, context)
    for user, k in enumerate([5, 2, 1, 0]):
        alone = jax.tree.map(lambda x, u=user, k=k: x[u : u + 1, : max(k, 1)], context)
        assert_same(jax.tree.map(lambda x, u=user: x[u : u + 1], batch), apply(variables, alone))


def test_an_empty_context_is_finite_with_finite_gradients(encoder, comparisons):
    context = comparisons(0, (2, 3), D, [0, 0])
    variables, apply = encode(encoder, context)

    def total(v):
        q = apply(v, context)
        return jnp.sum(q.mean) + jnp.sum(q.scale)

    value, gradient = jax.value_and_grad(total)(variables)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_swapping_chosen_and_rejected_changes_z(encoder, comparisons):
    context = comparisons(0, (2, 3), D)
    variables, apply = encode(encoder, context)
    swapped = Comparisons(context.rejected, context.chosen, context.mask)
    assert jnp.abs(apply(variables, context).mean - apply(variables, swapped).mean).max() > 1e-3


def test_gradient_reaches_every_parameter(encoder, comparisons):
    context = comparisons(0, (2, 4), D)
    variables, apply = encode(encoder, context)

    def total(v):
        q = apply(v, context)
        return jnp.sum(q.mean**2) + jnp.sum(q.scale**2)

    gradient = jax.grad(total)(variables)
    leaves, _ = jax.tree_util.tree_flatten_with_path(gradient)
    # The key's bias shifts all scores of a row alike, so softmax cancels it.
    dead = [jax.tree_util.keystr(p) for p, x in leaves if not jnp.abs(x).max() > 0 and "key" not in str(p)]
    unused = {"responses_offset", "difference_offset"}  # without population rewards the offsets are 0
    assert not [name for name in dead if not any(u in name for u in unused)]


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
def test_the_size_of_z_does_not_track_k_and_the_published_layer_does(aggregation, comparisons):
    one = comparisons(0, (1, 1), D)
    context = jax.tree.map(lambda x: jnp.repeat(x, 16, axis=1), one)  # the same choice sixteen times

    def growth(**settings):
        encoder = NPEncoder(width=16, latent_dim=D, heads=4, aggregation=aggregation, **settings)
        variables = encoder.init(jax.random.key(1), one)
        sizes = [jnp.linalg.norm(encoder.apply(variables, c).mean) for c in (one, context)]
        return float(sizes[1] / sizes[0])

    assert growth() < 2
    if aggregation == "attention":
        assert growth(pool="sum", prior_choice=False, residual=False) > 4


def test_bayes_aggregation_is_the_posterior_of_its_own_model(comparisons):
    """With many rounds z is the mode of the log posterior that its docstring states."""
    context = comparisons(0, (1, 6), D)
    encoder = NPEncoder(latent_dim=D, aggregation="bayes", rounds=12)
    variables = encoder.init(jax.random.key(0), context)
    z = encoder.apply(variables, context).mean[0]
    a = (context.chosen - context.rejected)[0]
    gradient = jax.grad(lambda z: jax.nn.log_sigmoid(a @ z).sum() - 0.5 * (z**2).sum())(z)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@pytest.mark.parametrize("observations", [("difference",), ("responses",)])
def test_a_discrete_prior_gives_the_exact_posterior(observations, comparisons):
    """Mean and scale of z beside a sum over all kinds of people, in float64, with offsets, weights and repeats."""
    context = comparisons(0, (2, 6), D, [6, 4])
    rng = np.random.default_rng(1)
    offsets = rng.normal(size=(2, 6, 2))
    repeats = rng.integers(1, 3, (2, 6, 2)).astype(float)
    reads = (jnp.asarray(offsets), jnp.asarray(offsets), jnp.asarray(repeats))
    encoder = NPEncoder(latent_dim=D, aggregation="bayes", support=7, gaussian=True, observations=observations)
    variables = encoder.init(jax.random.key(0), context, *reads)
    variables = jax.tree.map(lambda x: x + 0.4 * jax.random.normal(jax.random.key(x.size), x.shape), variables)
    q = encoder.apply(variables, context, *reads)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["bayes"])
    weight, slope = np.exp(p[f"{observations[0]}_log_weight"]), p[f"{observations[0]}_offset"]
    chosen, rejected = (np.asarray(x, np.float64) for x in (context.chosen, context.rejected))
    for user, k in enumerate([6, 4]):
        log_p = p["log_prior"].copy()
        for i in range(k):
            for j, kind in enumerate(p["kinds"]):
                liked, disliked = (side[user, i] @ kind[:D] for side in (chosen, rejected))
                o = slope * offsets[user, i]
                if observations == ("difference",):
                    log_p[j] -= weight * np.logaddexp(0, -(o[0] - o[1] + liked - disliked))
                    continue
                log_p[j] -= weight / repeats[user, i, 0] * np.logaddexp(0, -(o[0] + liked + kind[D]))
                log_p[j] -= weight / repeats[user, i, 1] * np.logaddexp(0, o[1] + disliked + kind[D])
        posterior = np.exp(log_p - log_p.max())
        posterior /= posterior.sum()
        mean = posterior @ p["kinds"]
        np.testing.assert_allclose(q.mean[user], mean[:D], atol=1e-5)
        variance = posterior @ (p["kinds"] - mean) ** 2
        np.testing.assert_allclose(q.scale[user], np.sqrt(variance)[:D], atol=1e-4)


def test_a_discrete_prior_knows_that_people_are_extreme():
    """One wish of −2, 0 or 2: after one choice half-way between indifference and a wish, as Bayes' rule has it."""
    encoder = NPEncoder(latent_dim=1, aggregation="bayes", support=3)
    context = Comparisons(jnp.ones((1, 5, 1)), jnp.zeros((1, 5, 1)), jnp.ones((1, 5), bool))
    variables = encoder.init(jax.random.key(0), context)
    variables["params"]["bayes"]["kinds"] = jnp.array([[-2.0, 0], [0, 0], [2, 0]])
    likelihood = 1 / (1 + np.exp(-np.array([-2.0, 0, 2]))) ** 5
    expected = 2 * (likelihood[2] - likelihood[0]) / likelihood.sum()
    assert encoder.apply(variables, context).mean[0, 0] == pytest.approx(expected, abs=1e-5)
    assert expected > 1.8  # five choices alike: almost as sure as the most extreme kind of person
    opposite = Comparisons(context.rejected, context.chosen, context.mask)
    assert encoder.apply(variables, opposite).mean[0, 0] == pytest.approx(-expected, abs=1e-5)


def test_more_of_the_same_evidence_narrows_the_posterior(comparisons):
    context = comparisons(0, (1, 8), D)
    encoder = NPEncoder(latent_dim=D, aggregation="bayes", gaussian=True, rounds=3)
    variables = encoder.init(jax.random.key(0), context)
    scales = [
        encoder.apply(variables, Comparisons(context.chosen, context.rejected, jnp.arange(8)[None] < k)).scale.mean()
        for k in (0, 2, 8)
    ]
    assert scales[0] == pytest.approx(1, abs=1e-5)
    assert scales[0] > scales[1] > scales[2]


def test_solve_and_its_gradient_match_numpy():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 5, 5)).astype(np.float32)
    matrix = jnp.asarray(root @ root.swapaxes(1, 2) + 5 * np.eye(5, dtype=np.float32))
    vector = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    factor = jnp.linalg.cholesky(matrix)
    ours = jax.grad(lambda m, v: (_solve(m, factor, v) ** 2).sum(), argnums=(0, 1))(matrix, vector)
    reference = jax.grad(lambda m, v: (jnp.linalg.solve(m, v[..., None]) ** 2).sum(), argnums=(0, 1))(matrix, vector)
    assert_same(ours, reference, atol=1e-4)
    slopes = jnp.arange(1.0, 6.0)[None]
    ours = jax.value_and_grad(lambda m: (slopes * _variance(m, factor, vector)).sum())(matrix)
    diagonal = lambda m: jnp.diagonal(jnp.linalg.inv(m), axis1=-2, axis2=-1)  # noqa: E731
    assert_same(ours, jax.value_and_grad(lambda m: (slopes * diagonal(m)).sum())(matrix), atol=1e-4)


def test_a_margin_without_a_population_is_named(comparisons):
    with pytest.raises(ValueError, match="margin"):
        NPEncoder(inputs=("chosen", "margin")).init(jax.random.key(0), comparisons(0, (1, 2), D))
