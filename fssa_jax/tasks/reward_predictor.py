"""The predictor of a reward model: probabilities of held-out choices, with the latent integrated out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fssa_jax.models import rewards
from fssa_jax.ops.choices import real_responses
from fssa_jax.ops.distributions import antithetic_noise
from fssa_jax.ops.likelihoods import lapse_log_likelihood
from fssa_jax.tasks.predictor import Infer, Predictor, no_latent
from fssa_jax.types import Comparisons, DiagGaussian, Episode, Posterior, PyTree


def make_posterior(model: rewards.RewardModel, samples: int) -> Infer:
    """(variables, context, features) ↦ q(z | C) as `Posterior`, compiled once per shape.

    All people share the noise, so that differences between people and between k are differences of q.
    """
    noise = antithetic_noise(jax.random.key(0), samples, model.noise_width)

    @jax.jit
    def infer(variables: PyTree, context: Comparisons, table: Array) -> Posterior:
        shared = jnp.broadcast_to(noise, (*context.mask.shape[:-1], *noise.shape))
        out: Any = model.apply(variables, context, table, shared, method="posterior")
        return out

    return infer


def with_lapses(q: DiagGaussian, log_p: Array, number: Array | int = 2) -> Array:
    """log p of choices, (samples, people, …), among a number of responses, with the lapses of q."""
    if not isinstance(q, Posterior) or q.lapse is None:
        return log_p
    lapse = jnp.expand_dims(q.lapse, tuple(range(1, log_p.ndim - 1)))
    return lapse_log_likelihood(log_p, *(jnp.broadcast_to(value, log_p.shape) for value in (lapse, number)))


def reward_predictor(model: rewards.RewardModel, features: Array, samples: int) -> Callable[[PyTree], Predictor]:
    """variables ↦ a predictor: log p(t | C) = log Σ_s w_s p(t | z_s), over the points of q(z | C); compiled once."""
    reads = model.latent == "context"
    read = make_posterior(model, samples) if reads else None

    @jax.jit
    def predict(
        variables: PyTree, q: DiagGaussian, targets: Comparisons, group: Array, features: Array | None
    ) -> dict[str, Array]:
        def apply(module: rewards.RewardModel) -> Array:
            z = None
            if isinstance(q, Posterior):
                z = jnp.moveaxis(q.points, -2, 0)
            elif module.latent == "group":
                z = module.group_z(group)[None]
            if module.likelihood == "dpl":
                return module.log_likelihood(targets, z, features)
            values = module.target_rewards(targets, z, features)
            if isinstance(q, Posterior):
                values = values * q.temperature[None, :, None, None]
            if targets.others is None:
                return with_lapses(q, jax.nn.log_sigmoid(values[..., 0] - values[..., 1]))
            listed = real_responses(targets)
            log_p = jax.nn.log_softmax(jnp.where(listed[None], values, -jnp.inf), axis=-1)
            return jnp.where(listed[None], with_lapses(q, log_p, listed.sum(-1, keepdims=True)), -jnp.inf)

        values: Any = model.apply(variables, method=apply)
        if isinstance(q, Posterior):
            log_weights = jnp.moveaxis(q.log_weights, -1, 0)
            values = values + log_weights.reshape(*log_weights.shape, *(1,) * (values.ndim - 2))
        log_p = jax.nn.logsumexp(values, axis=0)
        if targets.others is None:
            return {"log_p": log_p}
        return {"log_p": log_p[..., 0], "log_best_other": log_p[..., 1:].max(-1)}

    def bind(variables: PyTree) -> Predictor:
        variables = jax.device_put(variables)

        def infer(episodes: Episode) -> DiagGaussian:
            return read(variables, episodes.context, features) if read is not None else no_latent(episodes)

        def score(q: DiagGaussian, episodes: Episode) -> dict[str, np.ndarray]:
            return jax.device_get(predict(variables, q, episodes.targets, episodes.group, features))

        return Predictor(infer, score, reads, model.sampled)

    return bind
