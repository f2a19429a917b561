"""One predictor made of several: each person is predicted by the one that did not see them in training."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fssa_jax.tasks.predictor import Predictions, Predictor
from fssa_jax.types import DiagGaussian, Episode


@dataclasses.dataclass(frozen=True)
class PooledPredictor(Predictor):
    """Predicts the person in row i of a split by `parts[which[i]]`. Latents of different parts are not comparable."""

    parts: Sequence[Predictor] = ()
    which: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))

    @classmethod
    def of(cls, parts: Sequence[Predictor], which: np.ndarray) -> "PooledPredictor":
        """From one predictor per fold, and the fold of each person."""

        def infer(episodes: Episode) -> DiagGaussian:
            return _routed(episodes, which, lambda i, mine: parts[i].infer(mine))

        def score(q: DiagGaussian, episodes: Episode) -> Mapping[str, np.ndarray]:
            found = _routed((q, episodes), which, lambda i, mine: dict(parts[i].score(*mine)), episodes)
            return jax.tree.map(np.asarray, found)

        return cls(infer, score, parts[0].reads, parts[0].gaussian, tuple(parts), which)

    def predict(self, episodes: Episode, ks: Sequence[int]) -> Predictions:
        """See `Predictor`: the people of each part in batches of their own."""
        own = self.which[np.asarray(episodes.user)]
        found, order = [], []
        for i, part in enumerate(self.parts):
            rows = np.flatnonzero(own == i)
            if len(rows):
                mine = part.predict(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], episodes), ks)
                found.append(mine)
                order.append(rows)
        back = np.argsort(np.concatenate(order))
        return jax.tree.map(lambda *values: np.concatenate(values, axis=1)[:, back], *found)


def _routed(tree: Any, which: np.ndarray, of_part: Callable[[int, Any], Any], episodes: Episode | None = None) -> Any:
    """The outputs of every part for its own people, in the order of the people."""
    own = which[np.asarray((tree if episodes is None else episodes).user)]
    present = [int(i) for i in np.unique(own)]
    rows = [np.flatnonzero(own == i) for i in present]
    outputs = [
        of_part(i, jax.tree.map(lambda x, mine=mine: np.asarray(x)[mine], tree))
        for i, mine in zip(present, rows, strict=True)
    ]
    back = np.argsort(np.concatenate(rows))
    return jax.tree.map(lambda *values: np.concatenate(values)[back], *outputs)
