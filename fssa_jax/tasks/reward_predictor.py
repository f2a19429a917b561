"""The predictor of a reward model: probabilities of held-out choices, averaged over the latent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fssa_jax.models import rewards
from fssa_jax.ops.choices import real_responses
from fssa_jax.ops.distributions import antithetic_noise, gaussian_sample
from fssa_jax.tasks.predictor import Predictor, make_inference, no_latent
from fssa_jax.types import Comparisons, DiagGaussian, Episode, PyTree


def reward_predictor(model: rewards.RewardModel, features: Array, samples: int) -> Callable[[PyTree], Predictor]:
    """variables ↦ a predictor: log p(t | C) = log (1/S) Σ_s p(t | z_s), z_s ~ q(z | C); compiled once."""
    read = make_inference(model)

    @jax.jit
    def predict(
        variables: PyTree, q: DiagGaussian, targets: Comparisons, group: Array, features: Array | None
    ) -> dict[str, Array]:
        def apply(module: rewards.RewardModel) -> Array:
            z = None
            if module.latent != "none":
                group_z = module.latent == "group"
                z = module.group_z(group)[None] if group_z else latent_samples(q, samples, model.sampled)
            if targets.others is None:
                return module.log_likelihood(targets, z, features)
            values = module.target_rewards(targets, z, features)
            listed = real_responses(targets)
            return jax.nn.log_softmax(jnp.where(listed[None], values, -jnp.inf), axis=-1)

        values: Any = model.apply(variables, method=apply)
        log_p = jax.nn.logsumexp(values, axis=0) - jnp.log(values.shape[0])
        if targets.others is None:
            return {"log_p": log_p}
        return {"log_p": log_p[..., 0], "log_best_other": log_p[..., 1:].max(-1)}

    def bind(variables: PyTree) -> Predictor:
        variables = jax.device_put(variables)

        def infer(episodes: Episode) -> DiagGaussian:
            return read(variables, episodes.context, features) if model.latent == "context" else no_latent(episodes)

        def score(q: DiagGaussian, episodes: Episode) -> dict[str, np.ndarray]:
            return jax.device_get(predict(variables, q, episodes.targets, episodes.group, features))

        return Predictor(infer, score, model.latent == "context", model.sampled)

    return bind


def latent_samples(q: DiagGaussian, samples: int, sampled: bool) -> Array:
    """(samples, *batch, m): z sampled from q with the same noise for everybody, or the mean if z is deterministic.

    With shared noise, differences between people and between k are differences of q.
    """
    if not sampled:
        return q.mean[None]
    noise = antithetic_noise(jax.random.key(0), samples, q.mean.shape[-1])
    noise = noise.reshape(samples, *(1,) * (q.mean.ndim - 1), -1)
    return gaussian_sample(q, jnp.broadcast_to(noise, (samples, *q.mean.shape)))
