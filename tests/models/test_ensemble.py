"""An ensemble: predictions are the mean of those of its models, rewards at the mean of the latent that of theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Episode, RewardModel, SetEncoder
from fssa_jax.models.ensemble import Ensemble, separate, stacked

D, M, MEMBERS, SAMPLES = 5, 4, 3, 8
WEIGHTS = (3.0, 1.0, 4.0)


def model(width=M, kinds=0, lapses=True) -> RewardModel:
    return RewardModel(
        encoder=BayesEncoder(rounds=3, support=kinds, gaussian=True, lapses=lapses),
        target="linear",
        width=width,
        head="bilinear",
        population="linear",
        keep_population=True,
    )


def models(kinds=0, lapses=True) -> tuple[list[RewardModel], Ensemble]:
    """Three models of the same kind, or, with kinds None, of different kinds and sizes."""
    each = [model(kinds=kinds or 0, lapses=lapses) for _ in range(MEMBERS)]
    if kinds is None:
        each = [model(width=3), model(kinds=5), model(width=6)]
    return each, Ensemble.of(each, WEIGHTS)


@pytest.fixture
def episode(comparisons) -> Episode:
    context, targets = comparisons(0, (2, 6), D, [2, 6]), comparisons(1, (2, 7), D, [7, 5])
    return Episode(context, targets, jnp.zeros(2, int), jnp.zeros(2, int))


def variables_of(each, episode):
    """Of models with the same population reward, and the same share of lapses."""
    first, moved = None, []
    for i, one in enumerate(each):
        variables = one.init(jax.random.key(i), episode)
        first = first or variables
        new = jax.tree.map(lambda x, i=i: x + 0.3 * jax.random.normal(jax.random.key(i), x.shape), variables)
        new["params"] |= {name: first["params"][name] for name in ("population_reward", "population_log_scale")}
        if "lapse_logit" in new["params"]["encoder"]:
            new["params"]["encoder"]["lapse_logit"] = jnp.asarray(-2.0)
        moved.append(new)
    return moved


def average(values):
    return np.tensordot(np.array(WEIGHTS) / sum(WEIGHTS), np.stack(values), 1)


def predicted(model, variables, episode):
    noise = jax.random.normal(jax.random.key(9), (2, SAMPLES, 7))[..., : model.noise_width]
    q = model.apply(variables, episode.context, None, noise, method="posterior")
    log_p = model.apply(variables, episode.targets, jnp.moveaxis(q.points, -2, 0), method="log_likelihood")
    return q, jnp.exp(jax.nn.logsumexp(log_p + jnp.moveaxis(q.log_weights, -1, 0)[..., None], axis=0))


@pytest.mark.parametrize("kinds", [0, 5, None], ids=["normal", "discrete", "different"])
def test_a_prediction_is_the_mean_of_those_of_the_models(episode, kinds):
    each, ensemble = models(kinds)
    variables = variables_of(each, episode)
    q, p = predicted(ensemble, stacked(variables), episode)
    expected = [predicted(one, v, episode)[1] for one, v in zip(each, variables, strict=True)]
    np.testing.assert_allclose(p, average(expected), rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(q.log_weights).sum(-1), 1, rtol=1e-5)
    if kinds is None:
        assert ensemble.latent_dim == 3 + M + 6
        assert q.points.shape == (2, SAMPLES + 5 + SAMPLES, 3 + M + 6)


@pytest.mark.parametrize("kinds", [0, None], ids=["normal", "different"])
def test_the_mean_of_the_latent_gives_the_mean_of_the_rewards(episode, kinds):
    each, ensemble = models(kinds)
    variables = variables_of(each, episode)
    responses = jax.random.normal(jax.random.key(5), (2, 3, D))

    def rewards(model, variables):
        z = model.apply(variables, episode.context, method="infer").mean
        return model.apply(variables, responses, z[None], method="rewards")

    found = rewards(ensemble, stacked(variables))
    assert found.shape == (1, 2, 3, 1)
    expected = average([rewards(one, v) for one, v in zip(each, variables, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_mean_and_scale_are_those_of_the_points(episode):
    """Exactly so for a discrete prior, whose points are all the people there are."""
    each, ensemble = models(kinds=5)
    variables = stacked(variables_of(each, episode))
    q = ensemble.apply(variables, episode.context, None, jnp.zeros((2, 1, M + 1)), method="posterior")
    weights = np.exp(q.log_weights)[..., None]
    mean = (weights * q.points).sum(-2)
    np.testing.assert_allclose(q.mean, mean, atol=1e-5)
    np.testing.assert_allclose(q.scale**2, (weights * q.points**2).sum(-2) - mean**2, atol=1e-4)
    assert q.points.shape == (2, MEMBERS * 5, ensemble.latent_dim)


def test_without_a_latent_it_is_the_population_model(episode):
    each, ensemble = models()
    variables = variables_of(each, episode)
    responses = jax.random.normal(jax.random.key(5), (2, 3, D))
    nobody = jnp.zeros((1, 2, ensemble.latent_dim))
    got = ensemble.apply(stacked(variables), responses, nobody, method="rewards")
    expected = each[0].apply(variables[0], responses, jnp.zeros((1, 2, M)), method="rewards")
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_variables_can_be_taken_apart(episode):
    each, ensemble = models(None)
    variables = variables_of(each, episode)
    for got, expected in zip(separate(stacked(variables)), variables, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    initial = jax.tree.map(jnp.shape, ensemble.init(jax.random.key(0), episode))
    assert initial == jax.tree.map(jnp.shape, stacked(variables))


def test_what_cannot_be_averaged_is_refused(episode):
    by_attention = RewardModel(encoder=SetEncoder(width=8, latent_dim=4, heads=2), width=M)
    with pytest.raises(ValueError, match="BayesEncoder"):
        Ensemble.of([by_attention], [1.0]).init(jax.random.key(0), episode)
    each, ensemble = models()
    variables = stacked(variables_of(each, episode))
    with pytest.raises(ValueError, match=r"z must end in 12 for 3 models, got \(1, 2, 4\)"):
        ensemble.apply(variables, jnp.zeros((2, 3, D)), jnp.zeros((1, 2, M)), method="rewards")
    with pytest.raises(ValueError, match="a share for each of 3 models"):
        Ensemble(each=tuple(each), shares=(0.5, 0.5)).init(jax.random.key(0), episode)
