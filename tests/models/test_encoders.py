"""Invariants of both encoders: order, padding, each user's own k, empty contexts, gradients, sizes."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons, SetEncoder

D = 16
SET = SetEncoder(width=16, latent_dim=D, heads=4)
ENCODERS = {
    "mean": SET.clone(aggregation="mean"),
    "sum": SET.clone(aggregation="sum", pair="linear"),
    "attention": SET,
    "attention-gaussian": SET.clone(gaussian=True),
    "published": SET.clone(pool="sum", prior_choice=False, residual=False),
    "bayes": BayesEncoder(observations=("difference", "responses"), rounds=2),
    "bayes-gaussian": BayesEncoder(gaussian=True),
    "bayes-kinds": BayesEncoder(support=9, observations=("difference", "responses")),
    "bayes-kinds-gaussian": BayesEncoder(support=9, gaussian=True),
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    return ENCODERS[request.param]


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


def test_an_encoder_says_which_shapes_it_wants(encoder, comparisons):
    context = comparisons(0, (2, 3), D)
    variables = encoder.init(jax.random.key(0), context)

    def apply(**changed):
        parts = {"chosen": context.chosen, "rejected": context.rejected, "mask": context.mask} | changed
        return encoder.apply(variables, Comparisons(**parts))

    with pytest.raises(ValueError, match=r"chosen and rejected .* got \(2, 3, 16\) and \(2, 3, 15\)"):
        apply(rejected=context.rejected[..., 1:])
    with pytest.raises(ValueError, match=r"mask must be \(2, 3\) .* got \(2, 2\)"):
        apply(mask=context.mask[:, 1:])
    with pytest.raises(ValueError, match=r"rewards must be \(2, 3, 2\) .* got \(2, 4, 2\)"):
        encoder.apply(variables, context, rewards=jnp.zeros((2, 4, 2)))
    with pytest.raises(flax.errors.ScopeParamShapeError):
        encoder.apply(variables, comparisons(0, (2, 3), D - 1))
