"""An ensemble: predictions are the mean of those of its models, rewards at the mean of the latent that of theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Episode, RewardModel, SetEncoder
from fssa_jax.models.ensemble import Ensemble, separate, stacked

D, M, MEMBERS, SAMPLES = 5, 4, 3, 8


def models(kinds=0, lapses=True) -> tuple[RewardModel, Ensemble]:
    one = RewardModel(
        encoder=BayesEncoder(rounds=3, support=kinds, gaussian=True, lapses=lapses),
        target="linear",
        width=M,
        head="bilinear",
        population="linear",
        keep_population=True,
    )
    return one, Ensemble.of(one, MEMBERS)


@pytest.fixture
def episode(comparisons) -> Episode:
    context, targets = comparisons(0, (2, 6), D, [2, 6]), comparisons(1, (2, 7), D, [7, 5])
    return Episode(context, targets, jnp.zeros(2, int), jnp.zeros(2, int))


def variables_of(model, episode):
    """Of three models with the same population reward, and the same share of lapses."""
    each = [model.init(jax.random.key(i), episode) for i in range(MEMBERS)]
    moved = [
        jax.tree.map(lambda x, i=i: x + 0.3 * jax.random.normal(jax.random.key(i), x.shape), v)
        for i, v in enumerate(each)
    ]
    for one in moved:
        one["params"] |= {name: each[0]["params"][name] for name in ("population_reward", "population_log_scale")}
        if "lapse_logit" in one["params"]["encoder"]:
            one["params"]["encoder"]["lapse_logit"] = jnp.asarray(-2.0)
    return moved


@pytest.mark.parametrize("kinds", [0, 5], ids=["normal", "discrete"])
def test_a_prediction_is_the_mean_of_those_of_the_models(episode, kinds):
    one, ensemble = models(kinds)
    each = variables_of(one, episode)

    def predicted(model, variables):
        noise = jax.random.normal(jax.random.key(9), (2, SAMPLES, one.noise_width))
        q = model.apply(variables, episode.context, None, noise, method="posterior")
        log_p = model.apply(variables, episode.targets, jnp.moveaxis(q.points, -2, 0), method="log_likelihood")
        weights = jnp.moveaxis(q.log_weights, -1, 0)[..., None]
        return q, jnp.exp(jax.nn.logsumexp(log_p + weights, axis=0))

    q, p = predicted(ensemble, stacked(each))
    np.testing.assert_allclose(p, np.mean([predicted(one, v)[1] for v in each], axis=0), rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(q.log_weights).sum(-1), 1, rtol=1e-5)


def test_the_mean_of_the_latent_gives_the_mean_of_the_rewards(episode):
    one, ensemble = models()
    each = variables_of(one, episode)
    responses = jax.random.normal(jax.random.key(5), (2, 3, D))

    def rewards(model, variables):
        z = model.apply(variables, episode.context, method="infer").mean
        return model.apply(variables, responses, z[None], method="rewards")

    found = rewards(ensemble, stacked(each))
    assert found.shape == (1, 2, 3, 1)
    np.testing.assert_allclose(found, np.mean([rewards(one, v) for v in each], axis=0), rtol=1e-4, atol=1e-5)


def test_mean_and_scale_are_those_of_the_points(episode):
    """Exactly so for a discrete prior, whose points are all the people there are."""
    one, ensemble = models(kinds=5)
    variables = stacked(variables_of(one, episode))
    q = ensemble.apply(variables, episode.context, None, jnp.zeros((2, 1, one.noise_width)), method="posterior")
    weights = np.exp(q.log_weights)[..., None]
    mean = (weights * q.points).sum(-2)
    np.testing.assert_allclose(q.mean, mean, atol=1e-5)
    np.testing.assert_allclose(q.scale**2, (weights * q.points**2).sum(-2) - mean**2, atol=1e-4)
    assert q.points.shape == (2, MEMBERS * 5, ensemble.latent_dim)


def test_without_a_latent_it_is_the_population_model(episode):
    one, ensemble = models()
    variables = stacked(variables_of(one, episode))
    responses = jax.random.normal(jax.random.key(5), (2, 3, D))
    got = ensemble.apply(variables, responses, jnp.zeros((1, 2, ensemble.latent_dim)), method="rewards")
    first = separate(variables)[0]
    expected = one.apply(first, responses, jnp.zeros((1, 2, M)), method="rewards")
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_variables_can_be_taken_apart(episode):
    one, ensemble = models()
    each = variables_of(one, episode)
    for got, expected in zip(separate(stacked(each)), each, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    initial = jax.tree.map(jnp.shape, ensemble.init(jax.random.key(0), episode))
    assert initial == jax.tree.map(jnp.shape, stacked(each))


def test_what_cannot_be_averaged_is_refused(episode):
    by_attention = RewardModel(encoder=SetEncoder(width=8, latent_dim=4, heads=2), width=M)
    with pytest.raises(ValueError, match="BayesEncoder"):
        Ensemble(**{f: getattr(by_attention, f) for f in ("encoder", "width")}).init(jax.random.key(0), episode)
    one, ensemble = models()
    variables = stacked(variables_of(one, episode))
    with pytest.raises(ValueError, match=r"z must end in 12 for 3 models, got \(1, 2, 4\)"):
        ensemble.apply(variables, jnp.zeros((2, 3, D)), jnp.zeros((1, 2, M)), method="rewards")
