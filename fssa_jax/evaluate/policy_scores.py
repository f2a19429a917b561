"""What a policy implies about choices: log σ(β [Δ log π − Δ log π_ref]), for contexts of every size."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import PolicyObjective
from fssa_jax.evaluate.evaluate import Predictor
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.padding import best_plan
from fssa_jax.tasks.policy import PolicyData, text_log_probs
from fssa_jax.types import Episode, PyTree
from fssa_jax.watchdog import finished

_TOKENS = {"cpu": 16_384}  # of a call; elsewhere:
_MANY_TOKENS = 262_144
_ADAPTER_BYTES = 2**30  # of all sequences of a call, each of which has adapters of its own, at least; or:
_ADAPTER_SHARE = 16  # of a device's memory, one part in so many
_GROUPS = 3
_TIE = 5e-4  # of log-ratios, in nats: the reference was summed in batches of other shapes


@dataclass
class PolicyScores:
    """What a policy says of choices, (ks, users, targets, 2) with the chosen one first, and of people, (ks, users, m).

    `rewards` β [log π(y | x, z) − log π_ref(y | x)], a token where the objective is length-normalised; `log_probs`
    log π(y | x, z) in nats; `latent` the mean of z; `kl` of q(z | C) to N(0, I), each dimension. Rewards
    that differ by less than `tie` do so because their sums were rounded in another order.
    """

    rewards: np.ndarray
    log_probs: np.ndarray
    latent: np.ndarray
    kl: np.ndarray
    tie: float = 0.0

    @property
    def log_likelihood(self) -> np.ndarray:
        """(ks, users, targets) log σ(reward of the chosen − reward of the rejected); within `tie` they are equal."""
        margin = self.rewards[..., 0] - self.rewards[..., 1]
        return np.asarray(jax.nn.log_sigmoid(np.where(np.abs(margin) < self.tie, 0, margin)))


class PolicyScorer:
    """Log-ratios log π(y | x, z) − log π_ref(y | x) of texts, for the latents of people."""

    def __init__(self, conditioner: Conditioner, decoder: Decoder, data: PolicyData, objective: PolicyObjective):
        self.conditioner, self.decoder, self.data, self.objective = conditioner, decoder, data, objective
        self.lengths = np.asarray(data.ends)
        self._budget = _TOKENS.get(jax.local_devices()[0].platform, _MANY_TOKENS)
        self._ratios = jax.jit(self._log_ratios, static_argnames="size")
        self._infer = jax.jit(
            lambda variables, episode, features, k: conditioner.apply(
                variables, truncate_context(episode, k), features, method="latent_of"
            )
        )

    def _log_ratios(self, variables: PyTree, data: PolicyData, z: jax.Array, ids: jax.Array, size: int) -> jax.Array:
        adapters: Any = self.conditioner.apply(variables, z, method="adapt")
        short = replace(data, tokens=data.tokens[:, :size])
        ratio = text_log_probs(self.decoder, data.base, short, ids, adapters) - data.reference[ids]
        if self.objective.length_normalised:
            ratio = ratio / jnp.maximum(data.ends[ids] - data.starts[ids], 1).astype(jnp.float32)
        return ratio

    def of(self, data: PolicyData) -> "PolicyScorer":
        """The same for other texts; what is compiled is shared."""
        other = copy(self)
        other.data, other.lengths = data, np.asarray(data.ends)
        return other

    def log_ratios(
        self, variables: PyTree, z: np.ndarray, people: np.ndarray, ids: np.ndarray, groups: int = _GROUPS
    ) -> np.ndarray:
        """(n,) log-ratios of texts `ids` (n,) for the latents `z` (rows, m) of `people` (n,), one of the rows each.

        Texts of like length are scored together: `groups` lengths, each a program of its own.
        """
        out = np.zeros(len(ids), np.float32)
        if not len(ids):
            return out
        order = np.argsort(-self.lengths[ids], kind="stable")
        start, most = 0, max(_adapter_budget() // self._adapter_bytes(variables, z.shape[1]), 1)
        for number, size in best_plan(self.lengths[ids][order], groups, self.data.tokens.shape[1]):
            rows = min(max(self._budget // size, 1), number, most)
            for first in range(start, start + number, rows):
                part = order[first : min(first + rows, start + number)]
                place = np.resize(part, rows)  # the last call of a size is filled up
                values = self._ratios(
                    variables, self.data, jnp.asarray(z[people[place]]), jnp.asarray(ids[place]), size
                )
                out[part] = np.asarray(values)[: len(part)]
                finished()
            start += number
        return out

    def _adapter_bytes(self, variables: PyTree, width: int) -> int:
        """Of the adapters of one more sequence: what two have beyond those of one."""
        one, two = (
            sum(
                leaf.size * leaf.dtype.itemsize
                for leaf in jax.tree.leaves(
                    jax.eval_shape(
                        lambda v, z: self.conditioner.apply(v, z, method="adapt"), variables, jnp.zeros((n, width))
                    )
                )
            )
            for n in (1, 2)
        )
        return max(two - one, 1)

    def of_texts(self, variables: PyTree, z: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """(texts,) log-ratios of every text for one latent (m,); 0 for texts that are not in `ids`."""
        out = np.zeros(len(self.lengths), np.float32)
        unique = np.unique(ids)
        out[unique] = self.log_ratios(variables, z[None], np.zeros(len(unique), int), unique)
        return out

    def score(self, variables: PyTree, episodes: Episode, ks: Sequence[int]) -> "PolicyScores":
        """What the policy says of the targets, for contexts of every size in `ks`."""
        pairs = np.stack([np.asarray(episodes.targets.chosen), np.asarray(episodes.targets.rejected)], -1)
        users = len(pairs)
        ratios, means, divergences = [], [], []
        reads = self.conditioner.latent == "context"
        for i, k in enumerate(ks):
            if i and not reads:  # the same at every k
                for series in (ratios, means, divergences):
                    series.append(series[0])
                continue
            q = self._infer(variables, episodes, self.data.features, jnp.int32(k))
            z = np.asarray(q.mean)
            # Who has chosen nothing is everybody's mean: texts are scored once for all.
            if self.conditioner.latent == "none" or (reads and k == 0):
                ratio = self.of_texts(variables, z[0], pairs)[pairs]
            else:
                people = np.broadcast_to(np.arange(users)[:, None, None], pairs.shape)
                ratio = self.log_ratios(variables, z, people.ravel(), pairs.ravel()).reshape(pairs.shape)
            ratios.append(ratio)
            mean = np.broadcast_to(z, (users, z.shape[-1]))
            variance = np.maximum(np.broadcast_to(np.asarray(q.scale), mean.shape) ** 2, 1e-12)
            means.append(mean)
            divergences.append(0.5 * (variance + mean**2 - 1 - np.log(variance)))
        rewards = self.objective.beta * np.stack(ratios)
        lengths = np.maximum(self.lengths - np.asarray(self.data.starts), 1)[pairs]
        scale = lengths if self.objective.length_normalised else 1.0
        log_probs = np.stack(ratios) * scale + np.asarray(self.data.reference)[pairs]
        return PolicyScores(rewards, log_probs, np.stack(means), np.stack(divergences), self.objective.beta * _TIE)

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


def _adapter_budget() -> int:
    """Bytes for the adapters of a call, by what the device has; a CPU does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return max(stats.get("bytes_limit", 0) // _ADAPTER_SHARE, _ADAPTER_BYTES)
