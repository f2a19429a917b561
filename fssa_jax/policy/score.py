"""What a policy implies about choices: log σ(β [Δ log π − Δ log π_ref]), for contexts of every size."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.buckets import bucket
from fssa_jax.episodes import truncate_context
from fssa_jax.evaluate import Predictor
from fssa_jax.models.decoder import Decoder
from fssa_jax.policy.conditioner import Conditioner
from fssa_jax.policy.config import PolicyObjective
from fssa_jax.policy.step import PolicyData, text_log_probs
from fssa_jax.types import Episode, PyTree

_TOKENS = {"cpu": 16_384}  # of a call; elsewhere:
_MANY_TOKENS = 262_144


@dataclass
class PolicyScores:
    """What a policy says of choices, (ks, users, targets, 2) with the chosen one first, and of people, (ks, users, m).

    `rewards` β [log π(y | x, z) − log π_ref(y | x)], a token where the objective is length-normalised; `log_probs`
    log π(y | x, z) in nats; `latent` the mean of z; `kl` of q(z | C) to N(0, I), each dimension.
    """

    rewards: np.ndarray
    log_probs: np.ndarray
    latent: np.ndarray
    kl: np.ndarray

    @property
    def log_likelihood(self) -> np.ndarray:
        """(ks, users, targets) log σ(reward of the chosen − reward of the rejected)."""
        return np.asarray(jax.nn.log_sigmoid(self.rewards[..., 0] - self.rewards[..., 1]))


class PolicyScorer:
    """Log-ratios log π(y | x, z) − log π_ref(y | x) of texts, for the latents of people."""

    def __init__(self, conditioner: Conditioner, decoder: Decoder, data: PolicyData, objective: PolicyObjective):
        self.conditioner, self.decoder, self.data, self.objective = conditioner, decoder, data, objective
        self.lengths = np.asarray(data.ends)
        self._budget = _TOKENS.get(jax.devices()[0].platform, _MANY_TOKENS)
        self._ratios = jax.jit(self._log_ratios, static_argnames="size")
        self._infer = jax.jit(
            lambda variables, episode, features, k: conditioner.apply(
                variables, truncate_context(episode, k), features, method="latent_of"
            )
        )

    def _log_ratios(self, variables: PyTree, data: PolicyData, z: jax.Array, ids: jax.Array, size: int) -> jax.Array:
        adapters: Any = self.conditioner.apply(variables, z, method="adapt")
        flat = ids.reshape(-1)
        short = replace(data, tokens=data.tokens[:, :size])
        ratio = text_log_probs(self.decoder, data.base, short, flat, adapters) - data.reference[flat]
        if self.objective.length_normalised:
            ratio = ratio / jnp.maximum(data.ends[flat] - data.starts[flat], 1).astype(jnp.float32)
        return ratio.reshape(ids.shape)

    def of(self, data: PolicyData) -> "PolicyScorer":
        """The same for other texts; what is compiled is shared."""
        other = copy(self)
        other.data, other.lengths = data, np.asarray(data.ends)
        return other

    def log_ratios(self, variables: PyTree, z: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(rows, n) log-ratios of texts `ids` (rows, n) for the latents `z` (rows, m), in calls of one shape."""
        size = min(bucket(int(self.lengths[ids].max(initial=1))), self.data.tokens.shape[1])
        rows = max(self._budget // (size * ids.shape[1]), 1)
        out = []
        for start in range(0, len(ids), rows):
            place = np.arange(start, start + min(rows, len(ids))) % len(ids)  # the last call is filled up
            values = self._ratios(variables, self.data, jnp.asarray(z[place]), jnp.asarray(ids[place]), size)
            out.append(np.asarray(values)[: min(rows, len(ids) - start)])
        return np.concatenate(out)

    def of_texts(self, variables: PyTree, z: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(texts,) log-ratios of every text for one latent (m,); 0 for texts that are not in `ids`."""
        out = np.zeros(len(self.lengths), np.float32)
        unique = np.unique(ids)
        by_length = unique[np.argsort(-self.lengths[unique], kind="stable")]
        longest = int(self.lengths[by_length[:1]].max(initial=1))
        number = min(max(self._budget // max(longest, 1), 1), 256)
        for start in range(0, len(by_length), number):
            part = by_length[start : start + number]
            out[part] = self.log_ratios(variables, z[None], np.resize(part, number)[None])[0, : len(part)]
        return out

    def score(self, variables: PyTree, episodes: Episode, ks: Sequence[int]) -> "PolicyScores":
        """What the policy says of the targets, for contexts of every size in `ks`."""
        pairs = np.stack([np.asarray(episodes.targets.chosen), np.asarray(episodes.targets.rejected)], -1)
        users, targets = pairs.shape[:2]
        ratios, means, divergences = [], [], []
        for k in ks:
            q = self._infer(variables, episodes, self.data.features, jnp.int32(k))
            z = np.asarray(q.mean)
            # Who has chosen nothing is everybody's mean: texts are scored once for all.
            if self.conditioner.latent == "none" or (self.conditioner.latent == "context" and k == 0):
                ratio = self.of_texts(variables, z[0], pairs)[pairs]
            else:
                ratio = self.log_ratios(variables, z, pairs.reshape(users, -1)).reshape(users, targets, 2)
            ratios.append(ratio)
            mean = np.broadcast_to(z, (users, z.shape[-1]))
            variance = np.maximum(np.broadcast_to(np.asarray(q.scale), mean.shape) ** 2, 1e-12)
            means.append(mean)
            divergences.append(0.5 * (variance + mean**2 - 1 - np.log(variance)))
        rewards = self.objective.beta * np.stack(ratios)
        lengths = np.maximum(self.lengths - np.asarray(self.data.starts), 1)[pairs]
        scale = lengths if self.objective.length_normalised else 1.0
        log_probs = np.stack(ratios) * scale + np.asarray(self.data.reference)[pairs]
        return PolicyScores(rewards, log_probs, np.stack(means), np.stack(divergences))

    def predict(
        self, variables: PyTree, episodes: Episode, ks: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `evaluate.Predictor`."""
        scores = self.score(variables, episodes, ks)
        return scores.log_likelihood, scores.latent[-1], scores.kl[-1]

    def predictor(self, variables: PyTree) -> Predictor:
        """For `evaluate`."""
        variables = jax.device_put(variables)
        return Predictor(
            partial(self.predict, variables), self.conditioner.latent == "context", self.conditioner.sampled
        )
