"""A calibrated latent: shrunk towards the population by the number of choices; without choices it is the prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons, Episode, RewardModel
from fssa_jax.models.calibration import Calibration, factors
from fssa_jax.tasks.reward_predictor import reward_predictor
from fssa_jax.types import Posterior

D, M = 5, 3
MODEL = RewardModel(
    encoder=BayesEncoder(rounds=4, gaussian=True),
    target="linear",
    width=M,
    head="bilinear",
    population="linear",
    keep_population=True,
    feature_scale=2.0,
)
POPULATION = RewardModel(latent="none", width=M, population="linear", feature_scale=2.0)


@pytest.fixture
def context(comparisons):
    return comparisons(0, (4, 6), D, [0, 1, 3, 6])


@pytest.fixture
def variables(context):
    zeros = jnp.zeros(4, int)
    made = MODEL.init(jax.random.key(0), Episode(context, context, zeros, zeros))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), made)


def posterior(variables, context, samples=8) -> Posterior:
    noise = jax.random.normal(jax.random.key(1), (*context.mask.shape[:-1], samples, MODEL.noise_width))
    return MODEL.apply(variables, context, None, noise, method="posterior")


def with_calibration(variables, shrinkage, log_temperature, without=0.0, shrinkage_without=0.0, most=6.0):
    given = (shrinkage, log_temperature, without, shrinkage_without, most)
    values = Calibration(*(jnp.asarray(x, jnp.float32) for x in given))
    return {**variables, "calibration": values._asdict()}


def test_factors_go_from_one_end_to_the_other_in_log_k():
    calibration = Calibration(
        jnp.array([0.2, 0.8]), jnp.log(jnp.array([1.0, 4.0])), jnp.log(jnp.array(3.0)), jnp.array(0.1), jnp.array(8.0)
    )
    g, temperature = factors(calibration, jnp.array([0.0, 2.0, 8.0, 80.0]))
    np.testing.assert_allclose(g, [0.1, 0.5, 0.8, 0.8], rtol=1e-5)  # log 3 is half of log 9
    np.testing.assert_allclose(temperature, [3, 2, 4, 4], rtol=1e-5)


def test_a_person_without_choices_gets_the_prior_as_far_as_the_calibration_says(variables, context):
    prior = variables["params"]["encoder"]["prior"]
    mean = jnp.arange(1.0, 1.0 + len(prior["mean"]))
    encoder = {**variables["params"]["encoder"], "prior": {**prior, "mean": mean}}
    variables = {"params": {**variables["params"], "encoder": encoder}}
    plain = posterior(variables, context)
    half = posterior(with_calibration(variables, [1, 1], [0, 0], shrinkage_without=0.5), context)
    np.testing.assert_allclose(half.mean[0], 0.5 * mean, atol=1e-6)
    np.testing.assert_allclose(half.points[0], 0.5 * plain.points[0], atol=1e-6)
    np.testing.assert_array_equal(half.points[1:], plain.points[1:])


def test_a_person_without_choices_gets_the_population(variables, context):
    responses = jax.random.normal(jax.random.key(2), (4, 7, D))
    q = posterior(with_calibration(variables, [1, 1], [0, 0]), context)
    own = MODEL.apply(variables, responses, jnp.moveaxis(q.points, -2, 0), method="rewards")[..., 0]
    shared = {"params": {"population_reward": variables["params"]["population_reward"]}}
    population = POPULATION.apply(shared, responses, method="rewards")[0, ..., 0]
    scale = jnp.exp(variables["params"]["population_log_scale"])
    np.testing.assert_allclose(own[:, 0], np.broadcast_to(scale * population[0], own[:, 0].shape), atol=1e-5)
    assert np.abs(own[:, 3] - scale * population[3][None]).max() > 0.1


def test_shrinkage_moves_everything_of_z_and_temperature_nothing(variables, context):
    plain = posterior(variables, context)
    half = posterior(with_calibration(variables, [0.5, 0.5], jnp.log(jnp.array([2.0, 2.0]))), context)
    for name in ("mean", "scale", "points"):
        np.testing.assert_allclose(getattr(half, name)[1:], 0.5 * getattr(plain, name)[1:], atol=1e-6)
    np.testing.assert_allclose(half.temperature, [1, 2, 2, 2], rtol=1e-6)
    np.testing.assert_array_equal(plain.temperature, np.ones(4))
    mean = MODEL.apply(with_calibration(variables, [0.5, 0.5], [0, 0]), context, method="infer").mean
    np.testing.assert_allclose(mean, half.mean, atol=1e-6)


def test_the_population_of_a_model_that_keeps_it_has_no_gradient(variables, context):
    def reward(params):
        z = jnp.ones((1, 4, M))
        return MODEL.apply({"params": params}, context.chosen, z, method="rewards").sum()

    slopes = jax.grad(reward)(variables["params"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes["population_reward"]))
    assert slopes["population_log_scale"] != 0


def test_points_have_the_mean_and_the_whole_covariance_of_the_posterior(variables, comparisons):
    """Λ is the Hessian of the log posterior, whose inverse is not diagonal."""
    context = comparisons(3, (1, 6), D)
    q = posterior(variables, context, samples=20_000)
    p = variables["params"]
    encode = MODEL.apply(variables, context.chosen, method="encode_responses").response
    a = (encode - MODEL.apply(variables, context.rejected, method="encode_responses").response)[0]

    rewards = [
        MODEL.apply(variables, side, jnp.zeros((1, 1, M)), method="rewards")[0, 0, :, 0]
        for side in (context.chosen, context.rejected)
    ]
    encoder = p["encoder"]
    offset = encoder["difference_offset"] * (rewards[0] - rewards[1])
    weight, precision = jnp.exp(encoder["difference_log_weight"]), jnp.exp(encoder["prior"]["log_precision"])[:M]

    def log_posterior(z):
        return weight * jax.nn.log_sigmoid(offset + a @ z).sum() - 0.5 * (precision * z**2).sum()

    covariance = np.linalg.inv(-np.asarray(jax.hessian(log_posterior)(q.mean[0])))
    points = np.asarray(q.points[0])
    np.testing.assert_allclose(points.mean(0), q.mean[0], atol=0.03)
    np.testing.assert_allclose(np.cov(points.T), covariance, rtol=0.1, atol=0.02)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), q.scale[0], rtol=0.01)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.02


def test_points_of_a_discrete_prior_are_its_kinds_and_without_choices_its_mean_is_theirs(comparisons):
    encoder = BayesEncoder(support=4, gaussian=True)
    context = comparisons(0, (2, 3), D, [0, 3])
    noise = jnp.zeros((2, 1, D + 1))
    variables = encoder.init(jax.random.key(0), context, noise=noise)
    q = encoder.apply(variables, context, noise=noise)
    assert q.points.shape == (2, 4, D)
    np.testing.assert_allclose(jnp.exp(q.log_weights).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.einsum("us,usm->um", jnp.exp(q.log_weights), q.points), q.mean, atol=1e-5)
    np.testing.assert_allclose(q.mean[0], variables["params"]["prior"]["kinds"].mean(0)[:D], atol=1e-6)
    np.testing.assert_allclose(encoder.apply(variables, context).mean, q.mean, atol=1e-6)  # the same without points


LAPSES = MODEL.clone(encoder=BayesEncoder(rounds=4, gaussian=True, lapses=True))


@pytest.mark.parametrize("listed", [False, True])
def test_lapses_are_in_every_prediction_but_those_of_the_population(listed, context, variables):
    """p = Σ_s w_s ((1 − ε) p_s + ε / n); where g = 0 everybody gets the population model, which has no lapses."""
    encoder = {**variables["params"]["encoder"], "lapse_logit": jnp.float32(-1.0)}
    variables = {"params": {**variables["params"], "encoder": encoder}}
    epsilon = 1 / (1 + np.exp(1))
    if listed:  # of two, and of three
        offered = jnp.arange(6)[None, :, None] % 2 == jnp.zeros((4, 1, 1), int)
        context = Comparisons(context.chosen, context.rejected, context.mask, context.chosen[:, :, None] ** 2, offered)
    episodes = Episode(context, context, jnp.zeros(4, int), jnp.zeros(4, int))
    predict = reward_predictor(LAPSES, None, 8)

    def expected(q, lapse):
        z = jnp.moveaxis(q.points, -2, 0)
        rewards = np.asarray(LAPSES.apply(variables, context, z, method="target_rewards"), np.float64)
        number = np.full((4, 6), 2)
        if listed:
            rewards[..., 2] = np.where(context.listed[None, ..., 0], rewards[..., 2], -np.inf)
            number = number + np.asarray(context.listed)[..., 0]
        p = np.exp(rewards[..., 0] - np.logaddexp.reduce(rewards, axis=-1))
        p = (1 - lapse[:, None]) * p + (lapse[:, None] / number)
        weights = np.exp(np.asarray(q.log_weights, np.float64)).T[..., None]
        return np.log((weights * p).sum(0))

    for calibrated, lapse in ((False, np.full(4, epsilon)), (True, np.array([0, *[epsilon] * 3]))):
        mine = with_calibration(variables, [1, 1], [0, 0]) if calibrated else variables
        bound = predict(mine)
        q = bound.infer(episodes)
        np.testing.assert_allclose(q.lapse, lapse, rtol=1e-5)
        np.testing.assert_allclose(bound.score(q, episodes)["log_p"], expected(q, lapse), atol=2e-5)
