"""Held-out scores during training: what the best checkpoint is chosen by, and warnings of a collapsed latent."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.reward import Config
from fssa_jax.data.dataset import Dataset, Split
from fssa_jax.evaluate.evaluate import collapse_warnings, eligible_users, first_users, latent_health
from fssa_jax.evaluate.predictor import evaluation_episodes, make_predictor
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.types import Episode, PyTree

_SEED = 1_000_003  # contexts of the validation set: the same in every run


@dataclasses.dataclass
class HeldOut:
    """A fixed set of held-out people with their contexts and targets, scored with `ks` choices of each read."""

    episodes: Episode
    ks: tuple[int, ...]

    @classmethod
    def of(
        cls,
        split: Split,
        ks: tuple[int, ...],
        *,
        conditional: bool,
        users: int | None = None,
        targets: int | None = None,
    ) -> "HeldOut":
        """Of a split, at most so many users and targets; without `conditional` nobody's context is read."""
        rows = split.table.chosen.shape[2]
        ks = tuple(k for k in sorted(set(ks)) if k <= rows) or (rows,)
        ks = ks if conditional else (0,)
        some = first_users(split, eligible_users(split, 0)[0], users)
        table = jax.tree.map(jnp.asarray, split.table)
        episodes = evaluation_episodes(_SEED, 0, table, jnp.asarray(some), max_context=max(ks))
        fewer = jax.tree.map(lambda x: x[:, :targets], episodes.targets)
        return cls(dataclasses.replace(episodes, targets=fewer), ks)

    def by_context(self, named: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Values (ks, users, targets), or (ks, users), as means over people for every k: "val/NAME_kK"."""
        return {
            f"val/{name}_k{k}": float(value)
            for name, values in named.items()
            for k, value in zip(self.ks, self._means(values), strict=True)
        }

    def scores(
        self, log_p: np.ndarray, latent: np.ndarray, kl: np.ndarray | None, accuracy: str
    ) -> tuple[dict[str, float], list[str]]:
        """Mean NLL over people and k, accuracy at every k under the name `accuracy`, and warnings of a collapse.

        Args:
          log_p: (ks, users, targets) log-probability of the choice that was made.
          latent, kl: (users, m) mean of z and its KL divergence of the largest k; None for a latent without width.
        """
        out = {"val/nll": float(self._means(-log_p).mean())}
        out |= self.by_context({accuracy: np.asarray(preference_accuracy(jnp.asarray(log_p)))})
        if self.ks == (0,):
            return out, []
        health = latent_health(latent, kl)
        out |= {f"latent/{name}": float(value) for name, value in health.items()}
        moved = float(np.abs(np.exp(log_p[-1]) - np.exp(log_p[0]))[np.asarray(self.episodes.targets.mask)].mean())
        return out, collapse_warnings(health, moved if len(self.ks) > 1 else None)

    def _means(self, values: np.ndarray) -> np.ndarray:
        if values.ndim == 2:
            return values.mean(-1)
        mask = np.asarray(self.episodes.targets.mask)
        return ((values * mask).sum(-1) / np.maximum(mask.sum(-1), 1)).mean(-1)


class Validation:
    """The scores of a reward model on all validation users."""

    def __init__(self, config: Config, dataset: Dataset, model: RewardModel):
        conditional = model.latent == "context"
        self.held_out = HeldOut.of(dataset.splits["val"], config.evaluate.k, conditional=conditional)
        self._predict = make_predictor(model, config.evaluate.samples)
        self._features = jnp.asarray(dataset.features)
        self._gaussian = model.encoder is not None and model.encoder.gaussian

    def __call__(self, variables: PyTree) -> tuple[dict[str, float], list[str]]:
        """See `HeldOut.scores`."""
        log_p, latent, kl = self._predict(variables, self._features, self.held_out.episodes, self.held_out.ks)
        kl: Any = kl if self._gaussian else None
        return self.held_out.scores(log_p, latent, kl, "accuracy")
