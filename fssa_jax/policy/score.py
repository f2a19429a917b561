"""What a policy implies about choices: log σ(β [Δ log π − Δ log π_ref]), for contexts of every size."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.buckets import bucket
from fssa_jax.episodes import truncate_context
from fssa_jax.evaluate import Predictor
from fssa_jax.models.decoder import Decoder
from fssa_jax.policy.config import PolicyObjective
from fssa_jax.policy.steering import Steering
from fssa_jax.policy.step import PolicyData, text_log_probs
from fssa_jax.types import Episode, PyTree

_TOKENS = {"cpu": 16_384}  # of a call; elsewhere:
_MANY_TOKENS = 262_144


class PolicyScorer:
    """Log-ratios log π(y | x, z) − log π_ref(y | x) of texts, for the latents of people."""

    def __init__(self, steering: Steering, decoder: Decoder, data: PolicyData, objective: PolicyObjective):
        self.steering, self.decoder, self.data, self.objective = steering, decoder, data, objective
        self.lengths = np.asarray(data.ends)
        self._budget = _TOKENS.get(jax.devices()[0].platform, _MANY_TOKENS)
        self._ratios = jax.jit(self._log_ratios, static_argnames="size")
        self._infer = jax.jit(
            lambda variables, episode, k: steering.apply(
                variables, truncate_context(episode, k), self.data.features, method="latent_of"
            )
        )

    def _log_ratios(self, variables: PyTree, data: PolicyData, z: jax.Array, ids: jax.Array, size: int) -> jax.Array:
        adapters: Any = self.steering.apply(variables, z, method="adapt")
        flat = ids.reshape(-1)
        short = replace(data, tokens=data.tokens[:, :size])
        ratio = text_log_probs(self.decoder, data.base, short, flat, adapters) - data.reference[flat]
        if self.objective.length_normalised:
            ratio = ratio / jnp.maximum(data.ends[flat] - data.starts[flat], 1).astype(jnp.float32)
        return ratio.reshape(ids.shape)

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

    def predict(
        self, variables: PyTree, episodes: Episode, ks: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `evaluate.Predictor`."""
        pairs = np.stack([np.asarray(episodes.targets.chosen), np.asarray(episodes.targets.rejected)], -1)
        users, targets = pairs.shape[:2]
        log_p, q = [], None
        for k in ks:
            q = self._infer(variables, episodes, jnp.int32(k))
            z = np.asarray(q.mean)
            # Who has chosen nothing is everybody's mean: texts are scored once for all.
            if self.steering.latent == "none" or (self.steering.latent == "context" and k == 0):
                ratio = self.of_texts(variables, z[0], pairs)[pairs]
            else:
                ratio = self.log_ratios(variables, z, pairs.reshape(users, -1)).reshape(users, targets, 2)
            log_p.append(np.asarray(jax.nn.log_sigmoid(self.objective.beta * (ratio[..., 0] - ratio[..., 1]))))
        assert q is not None
        mean = np.broadcast_to(np.asarray(q.mean), (users, q.mean.shape[-1]))
        variance = np.maximum(np.broadcast_to(np.asarray(q.scale), mean.shape) ** 2, 1e-12)
        return np.stack(log_p), mean, 0.5 * (variance + mean**2 - 1 - np.log(variance))

    def predictor(self, variables: PyTree) -> Predictor:
        """For `evaluate`."""
        variables = jax.device_put(variables)
        return Predictor(partial(self.predict, variables), self.steering.latent == "context", self.steering.sampled)
