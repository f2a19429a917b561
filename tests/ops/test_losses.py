"""The objectives of neural processes, and empty targets; those of policies, the published one by its golden vectors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import (
    DiagGaussian,
    dpo_loss,
    gaussian_kl,
    imitation_loss,
    implicit_rewards,
    latent_roles,
    neural_process_loss,
    response_weights,
    sft_loss,
    soft_label_loss,
)
from fssa_jax.ops.losses import masked_mean

Q = {
    name: DiagGaussian(jnp.full(3, m), jnp.full(3, s))
    for name, m, s in [("c", 0.0, 1.0), ("t", 0.5, 0.4), ("u", 1.0, 0.3)]
}


def test_roles_of_the_three_objectives():
    standard = DiagGaussian(jnp.zeros(3), jnp.ones(3))
    expected = {"elbo": (Q["u"], Q["c"]), "published": (Q["c"], Q["t"]), "vpl": (Q["c"], standard)}
    for objective, (sampled, reference) in expected.items():
        roles = latent_roles(objective, Q["c"], Q["t"], Q["u"])
        for ours, theirs in zip(roles, (sampled, reference), strict=True):
            np.testing.assert_array_equal(ours.mean, theirs.mean)
            np.testing.assert_array_equal(ours.scale, theirs.scale)


@pytest.mark.parametrize(
    ("objective", "message"), [("elbo", "q_union"), ("published", "q_targets"), ("mse", "objective")]
)
def test_missing_or_unknown_roles_are_named(objective, message):
    with pytest.raises((ValueError, TypeError), match=message):
        latent_roles(objective, Q["c"])


def test_loss_is_the_masked_mean_plus_the_weighted_kl():
    log_p = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.5, 0.5, 0.1]]))
    out = neural_process_loss(log_p, jnp.array([True, True, False]), Q["u"], Q["c"], 0.5)
    nll = -np.mean(np.log([[0.5, 0.25], [0.5, 0.5]]))
    assert out.nll == pytest.approx(nll, rel=1e-5)
    assert out.kl == pytest.approx(float(gaussian_kl(Q["u"], Q["c"])), rel=1e-6)
    assert out.loss == pytest.approx(nll + 0.5 * float(out.kl), rel=1e-5)


def test_no_target_gives_zero_loss_and_zero_gradient():
    log_p = jnp.log(jnp.full((2, 3), 0.3))
    value, gradient = jax.value_and_grad(lambda x: neural_process_loss(x, jnp.zeros(3, bool)).loss)(log_p)
    assert value == 0
    assert not gradient.any()


def test_masked_values_do_not_count_even_if_not_finite():
    values = jnp.array([1.0, 3.0, jnp.nan])
    value, gradient = jax.value_and_grad(lambda x: masked_mean(x, jnp.array([True, True, False])))(values)
    assert value == 2
    np.testing.assert_array_equal(gradient, [0.5, 0.5, 0])


def test_golden_dpo_loss():
    g = np.load(Path(__file__).parents[1] / "golden" / "dpo_loss.npz")
    first = jnp.asarray(g["in/choices"][..., 0] == 0)[None]

    def sides(x):
        return jnp.where(first, x[..., 0], x[..., 1]), jnp.where(first, x[..., 1], x[..., 0])

    def loss(log_p):
        return dpo_loss(*sides(log_p), *sides(jnp.asarray(g["in/ref_logprobs"])), beta=float(g["in/beta_dpo"])).mean()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(g["in/logprobs"]))
    np.testing.assert_allclose(value, g["out/loss"], atol=1e-5)
    np.testing.assert_allclose(gradient, g["out/grad_logprobs"], atol=1e-5)


KINDS = [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2), ("ipo", 0.0), ("hinge", 0.0)]


@pytest.mark.parametrize(("kind", "smoothing"), KINDS)
def test_policy_losses_at_known_margins(kind, smoothing):
    """Against the formulae of the table, written out for one number at a time."""
    beta = 0.5
    for margin in (-30.0, -1.0, 0.0, 2.0, 30.0):
        right, wrong = np.logaddexp(0, -beta * margin), np.logaddexp(0, beta * margin)
        expected = {
            "sigmoid": (1 - smoothing) * right + smoothing * wrong,
            "robust": ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing),
            "ipo": (margin - 1.0) ** 2,
            "hinge": max(0.0, 1 - beta * margin),
        }[kind]
        # The same margin, with whatever log-probabilities.
        for offset in (0.0, -7.0):
            sides = (margin - 3.0 + offset, -4.0, -5.0 + offset, -6.0)
            out = dpo_loss(*map(jnp.array, sides), beta=beta, kind=kind, label_smoothing=smoothing)
            assert out == pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "ipo", "hinge"])
def test_policy_losses_have_finite_gradients_at_extreme_margins(kind):
    gradient = jax.grad(lambda x: dpo_loss(x, -x, jnp.array(0.0), jnp.array(0.0), beta=1.0, kind=kind))
    for x in (-1e4, 1e4):
        assert np.isfinite(gradient(jnp.array(x)))


def test_what_a_policy_loss_does_not_have_is_refused():
    zero = jnp.zeros(())
    for kind, smoothing in (("ipo", 0.1), ("sigmoid", 0.5)):
        with pytest.raises(ValueError, match=r"label_smoothing must be (0 for 'ipo'|in \[0, 0.5\))"):
            dpo_loss(zero, zero, zero, zero, beta=1.0, kind=kind, label_smoothing=smoothing)  # type: ignore[arg-type]


def test_weights_of_responses_are_those_of_the_best_policy():
    """∝ exp(advantage / β); together 1; what is not real weighs nothing; sharper as β falls; nobody's are 0."""
    rewards = jnp.array([[1.5, -1.0, 3.0], [1.0, 1.0, 1.0]]), jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    for worth, worths in (("advantage", [0.5, -2.0, -0.5, 2.0]), ("reward", [1.5, -1.0, 1.0, 1.0])):
        chosen, rejected = response_weights(*rewards, mask, 0.5, worth)
        expected = np.exp(np.array(worths) / 0.5)
        expected /= expected.sum()
        np.testing.assert_allclose(np.concatenate([chosen[0, :2], rejected[0, :2]]), expected, rtol=1e-5)
    assert float(chosen[0, 2] + rejected[0, 2]) == 0
    np.testing.assert_array_equal(chosen[1], 0.0)
    assert response_weights(*rewards, mask, 0.1, "reward")[0][0, 0] > chosen[0, 0]
    swapped = response_weights(*rewards[::-1], mask, 0.5, "reward")
    np.testing.assert_allclose(swapped[0], rejected)
    moved = response_weights(rewards[0] + 7.0, rewards[1] + 7.0, mask, 0.5)
    np.testing.assert_allclose(moved, response_weights(*rewards, mask, 0.5), atol=1e-5)
    gradient = jax.grad(lambda r: sum(w.sum() for w in response_weights(r, rewards[1], mask, 0.5)[:1]))(rewards[0])
    assert np.isfinite(gradient).all()
    huge = response_weights(1e4 * rewards[0], 1e4 * rewards[1], mask, 0.5)
    np.testing.assert_allclose(sum(np.asarray(w).sum(1) for w in huge), [1.0, 0.0])


def sides_of_choices(seed=0, users=3, t=4):
    """Log-probabilities of chosen and rejected responses, their numbers of tokens, and which choices are real."""
    rng = np.random.default_rng(seed)
    chosen, rejected = -rng.uniform(1, 50, (2, users, t)).astype(np.float32)
    return chosen, rejected, rng.integers(1, 9, (users, t)), np.arange(t) < np.array([[4], [2], [0]])


@pytest.mark.parametrize("kind", ["sigmoid", "robust"])
def test_beta_and_label_smoothing_may_be_traced(kind):
    sides = [jnp.float32(x) for x in (-10.0, -12.0, -11.5, -11.0)]

    def loss(beta, smoothing):
        return dpo_loss(*sides, beta=beta, kind=kind, label_smoothing=smoothing)

    exact = loss(0.5, 0.1)
    assert jax.jit(loss)(0.5, 0.1) == pytest.approx(float(exact), rel=1e-6)
    for place in (0, 1):
        at, step = np.array([0.5, 0.1]), 1e-2 * np.eye(2)[place]
        expected = float(loss(*map(float, at + step)) - loss(*map(float, at - step))) / 2e-2
        assert jax.grad(loss, argnums=place)(0.5, 0.1) == pytest.approx(expected, rel=1e-2)
    assert jax.grad(lambda beta: dpo_loss(*sides, beta=beta, kind="ipo"))(0.5) == pytest.approx(2 * 1.5 / 0.5, rel=1e-5)
    with pytest.raises(ValueError, match="label_smoothing must be 0 for 'ipo'"):
        jax.jit(lambda smoothing: dpo_loss(*sides, beta=0.5, kind="ipo", label_smoothing=smoothing))(0.0)
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        dpo_loss(*sides, beta=0)
    weights = jax.jit(lambda beta: response_weights(jnp.ones(2), 0.0, jnp.array([True, False]), beta))(0.5)
    np.testing.assert_allclose(weights[0], [1 / (1 + np.exp(-4)), 0], rtol=1e-5)


def test_numbers_and_numpy_arrays_are_arrays():
    chosen, rejected, _, _ = sides_of_choices()
    ours = dpo_loss(chosen.astype(np.float64), -20, np.float32(-9.0), rejected, beta=np.float64(0.1))
    assert ours.shape == chosen.shape
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, np.logaddexp(0, -0.1 * (chosen + 9 + 20 + rejected)), rtol=1e-4)
    half = dpo_loss(jnp.asarray(chosen, jnp.bfloat16), -20.0, -9, 0.0, beta=0.1)
    assert half.dtype == jnp.bfloat16


def test_implicit_rewards_are_log_ratios():
    chosen, rejected, _, _ = sides_of_choices()
    np.testing.assert_allclose(implicit_rewards(chosen, rejected, 0.3), 0.3 * (chosen - rejected), rtol=1e-6)
    assert jax.grad(lambda beta: implicit_rewards(-3.0, -5.0, beta))(0.3) == pytest.approx(2.0)


def test_soft_labels_are_the_expected_loss_under_the_reward_model():
    """For the loss of DPO: with all of the label given by p, the cross entropy between p and the policy's choice."""
    rng = np.random.default_rng(1)
    margin, p = rng.normal(size=5).astype(np.float32), rng.random(5).astype(np.float32)
    loss, reversed_loss = dpo_loss(margin, 0.0, 0.0, 0.0, beta=1.0), dpo_loss(0.0, margin, 0.0, 0.0, beta=1.0)
    likely = 1 / (1 + np.exp(-margin))
    entropy = -p * np.log(likely) - (1 - p) * np.log(1 - likely)
    np.testing.assert_allclose(soft_label_loss(loss, reversed_loss, p, 1), entropy, rtol=1e-5)
    np.testing.assert_array_equal(soft_label_loss(loss, reversed_loss, p, 0.0), loss)
    mixed = soft_label_loss(loss, reversed_loss, p, 0.25)
    np.testing.assert_allclose(mixed, 0.75 * np.asarray(loss) + 0.25 * entropy, rtol=1e-5)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5"):
        soft_label_loss(loss, reversed_loss, p, 1.5)


def test_sft_is_the_mean_over_real_targets_per_token():
    chosen, _, tokens, mask = sides_of_choices()
    out = sft_loss(chosen, tokens, mask)
    for user, loss in enumerate(out):
        real = mask[user]
        expected = -np.mean(chosen[user][real] / tokens[user][real]) if real.any() else 0
        assert loss == pytest.approx(expected, rel=1e-5)
    no_tokens = np.where(mask, tokens, 0)
    gradient = jax.grad(lambda x: sft_loss(x, no_tokens, mask).sum())(jnp.asarray(chosen))
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~mask].any()


def test_imitation_is_the_weighted_log_likelihood_of_both_sides():
    chosen, rejected, _, mask = sides_of_choices()
    rewards = np.random.default_rng(2).normal(size=chosen.shape).astype(np.float32)
    weights = response_weights(rewards, 0.0, mask, 0.5)
    out = imitation_loss(chosen, rejected, weights, 6.5)
    expected = -(np.asarray(weights[0]) * chosen + np.asarray(weights[1]) * rejected).sum(1) / 6.5
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert out[2] == 0  # nobody's choice is real
    swapped = imitation_loss(rejected, chosen, weights[::-1], jnp.float32(6.5))
    np.testing.assert_allclose(swapped, out, rtol=1e-6)
