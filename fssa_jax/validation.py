"""Held-out scores during training: what the best checkpoint is chosen by, and warnings of a collapsed latent."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import Config
from fssa_jax.data.dataset import Dataset
from fssa_jax.evaluate import collapse_warnings, latent_health
from fssa_jax.metrics import preference_accuracy
from fssa_jax.models.rewards import RewardModel
from fssa_jax.predict import evaluation_episodes, make_predictor
from fssa_jax.types import PyTree

_VALIDATION_SEED = 1_000_003  # contexts of the validation set: the same in every run


@dataclasses.dataclass
class Validation:
    """A fixed set of held-out episodes, and the scores of a model on it."""

    predict: Callable
    episodes: PyTree
    ks: tuple[int, ...]
    features: jax.Array
    conditional: bool
    model: RewardModel

    @classmethod
    def make(cls, config: Config, dataset: Dataset, model: RewardModel) -> "Validation":
        table = jax.tree.map(jnp.asarray, dataset.splits["val"].table)
        users = jnp.flatnonzero(table.count[:, 1] > 0)
        conditional = model.latent == "context"
        rows = table.chosen.shape[2]
        ks = tuple(k for k in sorted(set(config.evaluate.k)) if k <= rows) if conditional else (0,)
        ks = ks or (rows,)
        episodes = evaluation_episodes(_VALIDATION_SEED, 0, table, users, max_context=max(ks))
        predict = make_predictor(model, config.evaluate.samples)
        return cls(predict, episodes, ks, jnp.asarray(dataset.features), conditional, model)

    def __call__(self, variables: PyTree) -> tuple[dict[str, float], list[str]]:
        """Mean NLL over users and k, accuracy at every k, and warnings of a collapsed latent."""
        log_p, latent, kl = self.predict(variables, self.features, self.episodes, self.ks)
        mask = np.asarray(self.episodes.targets.mask)
        hits = np.asarray(preference_accuracy(jnp.asarray(log_p)))

        def by_k(x):
            return ((x * mask).sum(-1) / mask.sum(-1)).mean(-1)

        scores = {"val/nll": float(by_k(-log_p).mean())}
        scores |= {f"val/accuracy_k{k}": float(a) for k, a in zip(self.ks, by_k(hits), strict=True)}
        if not self.conditional:
            return scores, []
        gaussian = self.model.encoder is not None and self.model.encoder.gaussian
        health = latent_health(latent, kl if gaussian else None)
        scores |= {f"latent/{name}": float(value) for name, value in health.items()}
        moved = float(np.abs(np.exp(log_p[-1]) - np.exp(log_p[0]))[mask].mean())
        return scores, collapse_warnings(health, moved if len(self.ks) > 1 else None)
