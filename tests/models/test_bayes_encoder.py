"""The Bayesian encoder: its result is the posterior of its own model, exact for a discrete prior."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons

D = 16


def test_the_result_is_the_posterior_of_its_own_model(comparisons):
    """With many rounds z is the mode of the log posterior that its docstring states."""
    context = comparisons(0, (1, 6), D)
    encoder = BayesEncoder(rounds=12)
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
    encoder = BayesEncoder(support=7, gaussian=True, observations=observations)
    variables = encoder.init(jax.random.key(0), context, *reads)
    variables = jax.tree.map(lambda x: x + 0.4 * jax.random.normal(jax.random.key(x.size), x.shape), variables)
    q = encoder.apply(variables, context, *reads)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    weight, slope = np.exp(p[f"{observations[0]}_log_weight"]), p[f"{observations[0]}_offset"]
    chosen, rejected = (np.asarray(x, np.float64) for x in (context.chosen, context.rejected))
    for user, k in enumerate([6, 4]):
        log_p = p["prior"]["log_prior"].copy()
        for i in range(k):
            for j, kind in enumerate(p["prior"]["kinds"]):
                liked, disliked = (side[user, i] @ kind[:D] for side in (chosen, rejected))
                o = slope * offsets[user, i]
                if observations == ("difference",):
                    log_p[j] -= weight * np.logaddexp(0, -(o[0] - o[1] + liked - disliked))
                    continue
                log_p[j] -= weight / repeats[user, i, 0] * np.logaddexp(0, -(o[0] + liked + kind[D]))
                log_p[j] -= weight / repeats[user, i, 1] * np.logaddexp(0, o[1] + disliked + kind[D])
        posterior = np.exp(log_p - log_p.max())
        posterior /= posterior.sum()
        mean = posterior @ p["prior"]["kinds"]
        np.testing.assert_allclose(q.mean[user], mean[:D], atol=1e-5)
        variance = posterior @ (p["prior"]["kinds"] - mean) ** 2
        np.testing.assert_allclose(q.scale[user], np.sqrt(variance)[:D], atol=1e-4)


LAPSE = 0.2
LAPSES = {"lapse_logit": jnp.asarray(np.log(LAPSE / (1 - LAPSE)), jnp.float32)}


def with_lapses(variables):
    """The variables of an encoder with a fifth of lapses."""
    return {"params": dict(variables["params"]) | LAPSES}


@pytest.mark.parametrize("listed", [False, True])
def test_with_lapses_the_result_is_the_mode_of_the_mixture(listed, comparisons):
    context = comparisons(0, (1, 6), D)
    if listed:  # a choice among three, and among two and three
        more = comparisons(1, (1, 6), D)
        offered = jnp.array([[[True]] * 3 + [[False]] * 3])
        context = Comparisons(context.chosen, context.rejected, context.mask, more.chosen[:, :, None], offered)
    encoder = BayesEncoder(rounds=60, lapses=True)
    variables = with_lapses(encoder.init(jax.random.key(0), context))
    z = encoder.apply(variables, context).mean[0]

    def log_posterior(z):
        values = jnp.stack([context.chosen[0] @ z, context.rejected[0] @ z], -1)
        number = jnp.full(6, 2.0)
        if listed:
            third = jnp.where(context.listed[0, :, 0], context.others[0, :, 0] @ z, -jnp.inf)
            values = jnp.concatenate([values, third[:, None]], -1)
            number = number + context.listed[0, :, 0].astype(float)
        p = jax.nn.softmax(values)[:, 0]
        return jnp.log((1 - LAPSE) * p + LAPSE / number).sum() - 0.5 * (z**2).sum()

    np.testing.assert_allclose(jax.grad(log_posterior)(z), 0, atol=1e-4)
    assert jnp.linalg.norm(jax.grad(log_posterior)(1.1 * z)) > 0.02


def test_with_lapses_a_discrete_prior_gives_the_exact_posterior(comparisons):
    context = comparisons(0, (1, 6), D)
    encoder = BayesEncoder(support=5, gaussian=True, lapses=True)
    variables = with_lapses(encoder.init(jax.random.key(1), context))
    kinds = np.asarray(variables["params"]["prior"]["kinds"], np.float64)[:, :D]
    p = 1 / (1 + np.exp(-np.asarray(context.chosen - context.rejected, np.float64)[0] @ kinds.T))
    posterior = np.prod((1 - LAPSE) * p + LAPSE / 2, axis=0)
    expected = posterior @ kinds / posterior.sum()
    np.testing.assert_allclose(encoder.apply(variables, context).mean[0], expected, atol=1e-5)


def test_one_wrong_click_turns_a_posterior_less_with_lapses():
    direction = jnp.zeros((1, 20, 4)).at[..., 0].set(3.0)
    wrong = direction.at[0, 0, 0].set(-9.0)
    moved = {}
    for lapses in (False, True):
        encoder = BayesEncoder(rounds=20, lapses=lapses)
        sides = [Comparisons(x, jnp.zeros_like(x), jnp.ones((1, 20), bool)) for x in (direction, wrong)]
        variables = encoder.init(jax.random.key(0), sides[0])
        right, turned = (float(encoder.apply(variables, side).mean[0, 0]) for side in sides)
        moved[lapses] = (right - turned) / right
    assert moved[True] < 0.05 < 0.5 < moved[False]


def test_a_discrete_prior_knows_that_people_are_extreme():
    """One wish of −2, 0 or 2: after one choice half-way between indifference and a wish, as Bayes' rule has it."""
    encoder = BayesEncoder(support=3)
    context = Comparisons(jnp.ones((1, 5, 1)), jnp.zeros((1, 5, 1)), jnp.ones((1, 5), bool))
    variables = encoder.init(jax.random.key(0), context)
    variables["params"]["prior"]["kinds"] = jnp.array([[-2.0, 0], [0, 0], [2, 0]])
    likelihood = 1 / (1 + np.exp(-np.array([-2.0, 0, 2]))) ** 5
    expected = 2 * (likelihood[2] - likelihood[0]) / likelihood.sum()
    assert encoder.apply(variables, context).mean[0, 0] == pytest.approx(expected, abs=1e-5)
    assert expected > 1.8  # five choices alike: almost as sure as the most extreme kind of person
    opposite = Comparisons(context.rejected, context.chosen, context.mask)
    assert encoder.apply(variables, opposite).mean[0, 0] == pytest.approx(-expected, abs=1e-5)


def test_more_of_the_same_evidence_narrows_the_posterior(comparisons):
    context = comparisons(0, (1, 8), D)
    encoder = BayesEncoder(gaussian=True, rounds=3)
    variables = encoder.init(jax.random.key(0), context)
    scales = [
        encoder.apply(variables, Comparisons(context.chosen, context.rejected, jnp.arange(8)[None] < k)).scale.mean()
        for k in (0, 2, 8)
    ]
    assert scales[0] == pytest.approx(1, abs=1e-5)
    assert scales[0] > scales[1] > scales[2]


def test_the_latent_is_as_wide_as_the_encoded_responses(comparisons):
    context = comparisons(0, (2, 3), 5)
    for encoder in (BayesEncoder(observations=("responses",)), BayesEncoder(support=4)):
        q, _ = encoder.init_with_output(jax.random.key(0), context)
        assert q.mean.shape == q.scale.shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observations": ("margin",)}, "observations must be some of .* got .'margin'"),
        ({"observations": ()}, "observations must be some of"),
        ({"rounds": 0}, "rounds ≥ 1 .* got 0"),
        ({"support": -1}, "support ≥ 0, got 1 and -1"),
    ],
)
def test_what_cannot_be_is_named(settings, message, comparisons, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    with pytest.raises(ValueError, match=message):
        BayesEncoder(**settings).init(jax.random.key(0), comparisons(0, (1, 2), D))


def test_offsets_and_repeats_have_a_value_for_each_response(comparisons):
    context = comparisons(0, (2, 3), D)
    for name in ("offsets", "repeats"):
        with pytest.raises(ValueError, match=rf"{name} must be \(2, 3, 2\) .* got \(2, 4, 2\)"):
            BayesEncoder(observations=("responses",)).init(jax.random.key(0), context, **{name: jnp.ones((2, 4, 2))})
