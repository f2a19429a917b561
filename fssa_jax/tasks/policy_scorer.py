"""The preferences that a policy implies, log σ(β [Δ log π − Δ log π_ref]), given the latents of people."""

from copy import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import PreferenceLoss
from fssa_jax.lm.packing import packed_lengths
from fssa_jax.lm.scoring import text_log_probs
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.choices import offered, responses_by_choice
from fssa_jax.ops.likelihoods import choice_log_likelihood
from fssa_jax.ops.padding import best_plan
from fssa_jax.progress import finished
from fssa_jax.tasks.predictor import Predictor, make_inference
from fssa_jax.types import DiagGaussian, Episode, PyTree

_TOKENS = {"cpu": 16_384}  # per call; other platforms:
_MANY_TOKENS = 262_144
_ADAPTER_BYTES = 2**30  # minimum budget for the adapters of all sequences of a call, one copy each; or:
_ADAPTER_SHARE = 16  # this fraction (1/16) of a device's memory, if larger
_GROUPS = 3
_TIE = 5e-4  # tolerance of log-ratios, in nats: the reference was computed in batches of other shapes


class PolicyScorer:
    """Log-ratios log π(y | x, z) − log π_ref(y | x) of texts, given latents; compiled once per shape."""

    def __init__(
        self, conditioner: Conditioner, decoder: Decoder, tables: Any, objective: PreferenceLoss, share: bool = False
    ):
        """`tables` is a `PolicyTables`; with `share` the prompt of a choice is computed once for its responses."""
        self.conditioner, self.decoder, self.tables, self.objective = conditioner, decoder, tables, objective
        self.share, self.ends = share, np.asarray(tables.texts.ends)
        self._budget = _TOKENS.get(jax.local_devices()[0].platform, _MANY_TOKENS)
        self._ratios = jax.jit(self._log_ratios, static_argnames="size")
        self._read = make_inference(conditioner) if conditioner.latent == "context" else None

    def _log_ratios(self, variables: PyTree, tables: Any, z: jax.Array, ids: jax.Array, size: int) -> jax.Array:
        adapters: Any = self.conditioner.apply(variables, z, method="adapt")
        texts, plan = tables.texts, ((len(ids), size),)
        ratio = text_log_probs(self.decoder, tables.base, texts, ids, adapters, plan) - tables.reference[ids]
        if self.objective.length_normalised:
            ratio = ratio / jnp.maximum(texts.ends[ids] - texts.starts[ids], 1).astype(jnp.float32)
        return ratio

    def of(self, tables: Any) -> "PolicyScorer":
        """The same scorer for other texts; compiled programs are shared."""
        other = copy(self)
        other.tables, other.ends = tables, np.asarray(tables.texts.ends)
        return other

    def log_ratios(
        self, variables: PyTree, z: np.ndarray, people: np.ndarray, ids: np.ndarray, groups: int = _GROUPS
    ) -> np.ndarray:
        """Log-ratios of texts `ids`, (n,) or (n, responses), each with the latent z[people[i]]; `people` is (n,).

        Responses of a row are packed (lm/packing.py). Rows of similar length are scored together: `groups` padded
        lengths, each compiled separately.
        """
        out = np.zeros(ids.shape, np.float32)
        if not len(ids):
            return out
        lengths, width = self.ends[ids], self.tables.texts.tokens.shape[1]
        if ids.ndim > 1:
            lengths = np.asarray(packed_lengths(self.tables.texts, jnp.asarray(ids)))
            width *= ids.shape[1]
        order = np.argsort(-lengths, kind="stable")
        start, most = 0, max(_adapter_budget() // self._adapter_bytes(variables, z.shape[1]), 1)
        for number, size in best_plan(lengths[order], groups, width):
            rows = min(max(self._budget // size, 1), number, most)
            for first in range(start, start + number, rows):
                part = order[first : min(first + rows, start + number)]
                place = np.resize(part, rows)  # pad the last call of a size
                values = self._ratios(
                    variables, self.tables, jnp.asarray(z[people[place]]), jnp.asarray(ids[place]), size
                )
                out[part] = np.asarray(values)[: len(part)]
                finished()
            start += number
        return out

    def _adapter_bytes(self, variables: PyTree, width: int) -> int:
        """Bytes of the adapters per additional sequence: those of two sequences minus those of one."""

        def size(n: int) -> int:
            tree = jax.eval_shape(
                lambda v, z: self.conditioner.apply(v, z, method="adapt"), variables, jnp.zeros((n, width))
            )
            return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

        return max(size(2) - size(1), 1)

    def score(self, variables: PyTree, q: DiagGaussian, episodes: Episode) -> dict[str, np.ndarray]:
        """Values per target, (people, targets), at the mean of q.

        "log_p" is log σ(reward of the chosen − reward of the rejected), where rewards that differ only by rounding
        count as equal. "rewards/…" are log-ratios times β (per token if the objective is length-normalised). "logps/…"
        are log π(y | x, z), in nats. Of choices among more than two, those of rejected responses are means.
        """
        targets = episodes.targets
        pairs = np.asarray(responses_by_choice(targets))
        z = np.asarray(q.mean)
        if len(z) == 1 or not np.ptp(z, axis=0).any():  # the same z for everybody: score each text once
            unique, place = np.unique(pairs, return_inverse=True)
            ratio = self.log_ratios(variables, z[:1], np.zeros(len(unique), int), unique)[place].reshape(pairs.shape)
        else:
            rows = pairs.reshape(-1, pairs.shape[-1]) if self.share else pairs.ravel()
            people = np.repeat(np.arange(len(pairs)), len(rows) // len(pairs))
            ratio = self.log_ratios(variables, z, people, rows).reshape(pairs.shape)
        rewards = self.objective.beta * ratio
        lengths = np.maximum(self.ends - np.asarray(self.tables.texts.starts), 1)[pairs]
        scale = lengths if self.objective.length_normalised else 1.0
        log_probs = ratio * scale + np.asarray(self.tables.reference)[pairs]
        listed = offered(targets)
        real = np.ones(1) if listed is None else np.asarray(listed)
        rejected, of_rejected = ((x[..., 1:] * real).sum(-1) / real.sum(-1) for x in (rewards, log_probs))
        margins = rewards[..., :1] - rewards[..., 1:]
        tied = np.where(np.abs(margins) < self.objective.beta * _TIE, 0, margins)
        out = {
            "log_p": np.asarray(choice_log_likelihood(tied, listed)),
            "rewards/margins": rewards[..., 0] - rejected,
            "rewards/chosen": rewards[..., 0],
            "rewards/rejected": rejected,
            "logps/chosen": log_probs[..., 0],
            "logps/rejected": of_rejected,
        }
        if listed is not None:
            out["log_best_other"] = out["log_p"] - np.where(real, tied, np.inf).min(-1)
        return out

    def predictor(self, variables: PyTree) -> Predictor:
        """The predictor of a policy with these variables."""
        variables = jax.device_put(variables)
        latent = self.conditioner.latent

        def infer(episodes: Episode) -> DiagGaussian:
            if self._read is not None:
                return self._read(variables, episodes.context, self.tables.features)
            q: Any = self.conditioner.apply(variables, episodes, None, method="latent_of")
            return q

        return Predictor(
            infer, lambda q, episodes: self.score(variables, q, episodes), latent == "context", self.conditioner.sampled
        )


def _adapter_budget() -> int:
    """Bytes for the adapters of a call, from the memory of the device; a CPU does not report it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return max(stats.get("bytes_limit", 0) // _ADAPTER_SHARE, _ADAPTER_BYTES)
