"""Validation during training: the score that selects the best checkpoint, and warnings of a collapsed latent."""

import dataclasses

import jax
import numpy as np

from fssa_jax.data.dataset import Split
from fssa_jax.evaluate.episodes import eligible_users, episodes_of, first_users
from fssa_jax.evaluate.latent import context_effect, latent_health
from fssa_jax.evaluate.warnings import collapse_warnings
from fssa_jax.ops.choices import choice_weights, real_responses
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.types import Episode

_SEED = 1_000_003  # of the validation contexts, which are the same in every run


@dataclasses.dataclass
class HeldOut:
    """A fixed set of held-out people with their contexts and targets, scored at context sizes `ks`."""

    episodes: Episode
    ks: tuple[int, ...]

    @classmethod
    def of(
        cls, split: Split, ks: tuple[int, ...], *, reads: bool, users: int | None = None, targets: int | None = None
    ) -> "HeldOut":
        """From a split, with at most `users` users and `targets` targets; k is 0 unless the predictor `reads`."""
        rows = split.table.chosen.shape[2]
        ks = tuple(k for k in sorted(set(ks)) if k <= rows) or (rows,)
        ks = ks if reads else (0,)
        some = first_users(split, eligible_users(split, 0)[0], users)
        episodes = episodes_of(split, some, _SEED, max(ks))
        fewer = jax.tree.map(lambda x: x[:, :targets], episodes.targets)
        return cls(dataclasses.replace(episodes, targets=fewer), ks)

    def scores(self, predictor: Predictor) -> tuple[dict[str, float], list[str]]:
        """Metrics and warnings of a collapse: "val/nll", the mean over people and k, and "val/NAME_kK" for every k."""
        found = predictor.predict(self.episodes, self.ks)
        series = {"rewards/accuracies": found.hits, **found.named}
        kl = found.kl() if predictor.gaussian else None
        if kl is not None:
            series["kl"] = kl.sum(-1)
        out = {"val/nll": float(self._means(-found.log_p).mean())}
        for name, values in series.items():
            out |= {f"val/{name}_k{k}": float(v) for k, v in zip(self.ks, self._means(values), strict=True)}
        if not predictor.reads:
            return out, []
        health = latent_health(found.mean[-1], None if kl is None else kl[-1])
        out |= {f"latent/{name}": float(value) for name, value in health.items()}
        effect = context_effect(found.log_p, np.asarray(self.episodes.targets.mask)) if len(self.ks) > 1 else None
        return out, collapse_warnings(health, effect)

    def log_p(self, predictor: Predictor) -> np.ndarray:
        """(ks, people, targets) log-probabilities of the choices."""
        return predictor.predict(self.episodes, self.ks).log_p

    @property
    def weight(self) -> np.ndarray:
        """(people, targets) weights of the targets; 0 for padding, and of sum 1 for every person with targets."""
        weight = np.asarray(choice_weights(self.episodes.targets))
        total = weight.sum(-1, keepdims=True)
        return weight / np.where(total > 0, total, 1)

    @property
    def sequences(self) -> int:
        """The number of responses of targets, at all k."""
        targets = self.episodes.targets
        return int((np.asarray(real_responses(targets)).sum(-1) * np.asarray(targets.mask)).sum()) * len(self.ks)

    def _means(self, values: np.ndarray) -> np.ndarray:
        """(ks,) means over people of (ks, people, targets), or (ks, people)."""
        if values.ndim == 2:
            return values.mean(-1)
        return (values * self.weight).sum(-1).mean(-1)
