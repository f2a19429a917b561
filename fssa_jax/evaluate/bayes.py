"""The exact posterior over people, if all possible people are known: the upper limit of any predictor."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fssa_jax.data.dataset import Truth
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.metrics import bayes_log_posterior, bayes_log_predictive
from fssa_jax.tasks.predictor import Predictions
from fssa_jax.types import Comparisons, Episode

_PEOPLE = 200  # people per call


def bayes_predictions(truth: Truth, episodes: Episode, ks: tuple[int, ...]) -> Predictions:
    """Predictions of the Bayes predictor, which knows the set of possible people; without latents."""
    nothing = np.zeros((len(ks), episodes.user.shape[0], 0))
    return Predictions(bayes_log_p(truth, episodes, ks), nothing, nothing, {})


def bayes_log_p(truth: Truth, episodes: Episode, ks: tuple[int, ...]) -> np.ndarray:
    """log p (ks, users, targets) of the Bayes predictor, which knows the set of possible people."""
    rewards, log_prior, sizes = jnp.asarray(truth.rewards), jnp.asarray(truth.log_prior), jnp.asarray(ks)
    users = episodes.user.shape[0]
    parts = [
        np.asarray(_log_p(rewards, log_prior, jax.tree.map(lambda x, i=i: x[i : i + _PEOPLE], episodes), sizes))
        for i in range(0, users, _PEOPLE)
    ]
    return np.concatenate(parts, axis=1)


@jax.jit
def _log_p(rewards: Array, log_prior: Array, episode: Episode, ks: Array) -> Array:
    def delta(c: Comparisons) -> Array:
        return rewards[c.chosen] - rewards[c.rejected]

    context, targets = delta(episode.context), delta(episode.targets)

    def at(k: Array) -> Array:
        mask = truncate_context(episode, k).context.mask
        return bayes_log_predictive(context, mask, targets, log_prior)

    return jax.lax.map(at, ks)


def posterior(truth: Truth, context: Comparisons) -> np.ndarray:
    """(users, people) p(u | C) of all possible people, given contexts of ids."""
    rewards = jnp.asarray(truth.rewards)
    evidence = rewards[context.chosen] - rewards[context.rejected]
    return np.exp(bayes_log_posterior(evidence, context.mask, jnp.asarray(truth.log_prior)))


def posterior_shift(truth: Truth, context: Comparisons) -> float:
    """Mean over users of √(mean over texts of (E[r(y) | C] − E[r(y)])²), in nats: the effect of the choices."""
    shift = (posterior(truth, context) - np.exp(truth.log_prior)) @ truth.rewards.T
    return float(np.sqrt((shift**2).mean(-1)).mean())
