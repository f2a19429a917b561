"""Predictions of a trained model: q(z | C), and log-probabilities of held-out choices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fssa_jax.ops.distributions import gaussian_kl, standard_normal_like
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.progress import finished
from fssa_jax.types import Comparisons, DiagGaussian, Episode, PyTree

_PEOPLE = 256  # per call; bounds the memory of an evaluation


class Predictions(NamedTuple):
    """Predictions of people's targets, for every context size.

    Attributes:
      log_p: (ks, people, targets) log-probability of the choice that the person made.
      mean, scale: (ks, people, m) of q(z | C); m is 0 without a latent.
      named: further values per target or per person, (ks, people, [targets]).
      log_best_other: (ks, people, targets) log-probability of the most probable response that was not chosen; None for
        choices between two, where it is log (1 − p).
    """

    log_p: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    named: Mapping[str, np.ndarray]
    log_best_other: np.ndarray | None = None

    @property
    def hits(self) -> np.ndarray:
        """(ks, people, targets) 1 where the choice is the most probable response, ½ at a tie, else 0."""
        return np.asarray(preference_accuracy(self.log_p, self.log_best_other))

    def repeated(self, number: int) -> "Predictions":
        """The same predictions for `number` context sizes; of a predictor that reads none."""
        log_p, best = (x if x is None else np.repeat(x[:1], number, axis=0) for x in (self.log_p, self.log_best_other))
        return self._replace(log_p=log_p, log_best_other=best)

    def kl(self) -> np.ndarray:
        """(ks, people, m) KL divergence of q(z | C) from N(0, I), per coordinate."""
        each = DiagGaussian(jnp.asarray(self.mean)[..., None], jnp.maximum(jnp.asarray(self.scale), 1e-6)[..., None])
        return np.asarray(gaussian_kl(each, standard_normal_like(each)))


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A predictor of choices: a reward model, or the preferences that a policy implies.

    Attributes:
      infer: episodes ↦ q(z | C) of each person; of width 0 without a latent.
      score: (q, episodes) ↦ values per target, (people, targets): "log_p", for choices of one among more than two
        "log_best_other", and optionally more.
      reads: whether it reads the context.
      gaussian: whether z is random.
    """

    infer: Callable[[Episode], DiagGaussian]
    score: Callable[[DiagGaussian, Episode], Mapping[str, np.ndarray]]
    reads: bool
    gaussian: bool = False

    def predict(self, episodes: Episode, ks: Sequence[int]) -> Predictions:
        """Predicts every person's targets from the first k choices of their context, for all ks."""
        people = len(episodes.user)
        if not self.reads:
            ks, number = ks[:1], len(ks)
        parts = [
            [self._at(episodes, start, k) for start in range(0, people, _PEOPLE)] for k in ks
        ]  # one list of batches of people per k
        joined = [{name: np.concatenate([part[name] for part in of_k]) for name in of_k[0]} for of_k in parts]
        if not self.reads:
            joined = joined * number
        stacked = {name: np.stack([of_k[name] for of_k in joined]) for name in joined[0]}
        best = stacked.pop("log_best_other", None)
        return Predictions(stacked.pop("log_p"), stacked.pop("mean"), stacked.pop("scale"), stacked, best)

    def latents(self, episodes: Episode, k: int) -> np.ndarray:
        """(people, m) means of q(z | the first k choices)."""
        mean = np.asarray(self.infer(truncate_context(episodes, k)).mean)
        return np.broadcast_to(mean, (len(episodes.user), mean.shape[-1]))

    def _at(self, episodes: Episode, start: int, k: int) -> dict[str, np.ndarray]:
        people = len(episodes.user)
        # The last batch is padded with the first people, so that one shape is compiled.
        index = np.arange(start, start + min(_PEOPLE, people)) % people
        part = truncate_context(jax.tree.map(lambda x: x[index], episodes), k)
        q = self.infer(part)
        values = dict(jax.device_get(self.score(q, part)))
        shape = (len(index), q.mean.shape[-1])
        values |= {"mean": np.broadcast_to(np.asarray(q.mean), shape)}
        values |= {"scale": np.broadcast_to(np.asarray(q.scale), shape)}
        finished()
        return {name: value[: min(_PEOPLE, people - start)] for name, value in values.items()}


Infer = Callable[[PyTree, Comparisons, Array], DiagGaussian]


def make_inference(module) -> Infer:
    """(variables, context, features) ↦ q(z | C), compiled once per shape. All inference of latents goes through it.

    Args:
      module: has a method `infer(context, table)`: a `RewardModel`, or a `Conditioner` that reads contexts.

    Returns:
      A function of contexts whose texts are ids (people, n) of rows of the features (texts, d).
    """
    return jax.jit(lambda variables, context, table: module.apply(variables, context, table, method="infer"))


def no_latent(episodes: Episode) -> DiagGaussian:
    """q of a model without a latent: of width 0."""
    nothing = jnp.zeros((len(episodes.user), 0))
    return DiagGaussian(nothing, nothing)
