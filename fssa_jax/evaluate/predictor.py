"""What a trained model says about choices: log-probabilities and rewards, with nothing trained."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.distributions import antithetic_noise, gaussian_sample
from fssa_jax.ops.episodes import evaluation_episode, truncate_context
from fssa_jax.types import ChoiceTable, DiagGaussian, Episode, PyTree
from fssa_jax.watchdog import finished

_BATCH = 256  # users a call: bounds the memory of an evaluation, whatever the number of users


def predictive(
    model: RewardModel, episode: Episode, features: Array | None, samples: int
) -> tuple[Float[Array, "batch t"], DiagGaussian]:
    """log p(targets | C) = log (1/S) Σ_s p(targets | z_s), and q(z | C), of width 0 where there is none.

    A deterministic latent needs one sample. To be used as `model.apply(..., method=predictive)`.
    """
    nothing = jnp.zeros((*episode.user.shape, 0))
    if model.latent == "none":
        return model.log_likelihood(episode.targets, None, features)[0], DiagGaussian(nothing, nothing)
    if model.latent == "group":
        log_p = model.log_likelihood(episode.targets, model.group_z(episode.group)[None], features)[0]
        return log_p, DiagGaussian(nothing, nothing)
    q = model.infer(episode.context, features)
    if model.sampled:
        # The same noise for every user and k: differences between them are differences of q.
        noise = antithetic_noise(jax.random.key(0), samples, q.mean.shape[-1])[:, None]
        z = gaussian_sample(q, jnp.broadcast_to(noise, (samples, *q.mean.shape)))
    else:
        z = q.mean[None]
    log_p = model.log_likelihood(episode.targets, z, features)
    return jax.nn.logsumexp(log_p, axis=0) - jnp.log(log_p.shape[0]), q


def make_predictor(
    model: RewardModel, samples: int
) -> Callable[[PyTree, Array | None, Episode, Sequence[int]], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A function of (variables, features, episodes, ks) that predicts every user's targets at every k.

    It returns log p (k, users, targets) and, of q(z | C) at the largest k, the means and the KL
    divergence to N(0, I) a unit (users, m); empty arrays for models without a latent.
    """

    @jax.jit
    def batch(variables: PyTree, features: Array | None, episode: Episode, ks: Int[Array, " k"]):
        def at(k: Int[Array, ""]) -> tuple[Array, DiagGaussian]:
            out: Any = model.apply(variables, truncate_context(episode, k), features, samples, method=predictive)
            return out

        log_p, q = jax.lax.map(at, ks)  # one k after the other: compiled once
        mean, variance = q.mean[-1], jnp.maximum(q.scale[-1] ** 2, 1e-12)
        return log_p, mean, 0.5 * (variance + mean**2 - 1 - jnp.log(variance))

    def predict(variables: PyTree, features: Array | None, episodes: Episode, ks: Sequence[int]):
        users = episodes.user.shape[0]
        parts = []
        for start in range(0, users, _BATCH):
            # The last batch is filled up with the first users, so that one shape is compiled.
            index = np.arange(start, start + min(_BATCH, users)) % users
            part = jax.tree.map(lambda x, index=index: x[index], episodes)
            log_p, mean, kl = jax.device_get(batch(variables, features, part, jnp.asarray(ks)))
            finished()
            keep = min(_BATCH, users - start)
            parts.append((log_p[:, :keep], mean[:keep], kl[:keep]))
        log_p, mean, kl = zip(*parts, strict=True)
        return np.concatenate(log_p, axis=1), np.concatenate(mean), np.concatenate(kl)

    return predict


@partial(jax.jit, static_argnames="max_context")
def evaluation_episodes(
    seed: int | Array, draw: int | Array, table: ChoiceTable, users: Array, *, max_context: int
) -> Episode:
    """Episodes of the given users: the same targets for every draw, other contexts (users first axis)."""
    key = jax.random.fold_in(jax.random.key(seed), draw)
    keys = jax.vmap(partial(jax.random.fold_in, key))(users)
    return jax.vmap(partial(evaluation_episode, max_context=max_context), in_axes=(0, None, 0))(keys, table, users)
