"""Fits the calibration of a reward model to validation people, and with it the guard: never worse than the population.

Rewards are r = s(y) + ⟨f(y), z⟩, where s is the population model's up to a scale. The calibration scales z by g(k) and
r by τ(k) (models/calibration.py). It maximises

    Σ_u (1/|K|) Σ_k Σ_t log p(t | C_k, g(k), τ(k)) − ½ Σ_i ((g_i − 1) / σ_g)² − ½ Σ_i (log τ_i / σ_τ)²

over its six numbers: g and τ are functions of k with two each, and have one each for people without choices. If the
choices of validation people are not predicted better with their contexts than by the population model, by more than one
standard error over people and by 5e-4 nats per choice, then g = 0: everybody gets the population model. Without
choices, g(0) = 0 unless the same holds of what the prior predicts.

Where validation people are few, they are all people but those for testing, each predicted by a model of another fold.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array

from fssa_jax.data.dataset import Split
from fssa_jax.evaluate.episodes import eligible_users, evaluation_episodes
from fssa_jax.models.calibration import Calibration, factors
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.choices import choice_weights, real_responses
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.likelihoods import lapse_log_likelihood
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_predictor import make_posterior
from fssa_jax.types import Episode, Posterior, PyTree

_SEED = 1_000_033  # of the contexts, which differ from those that chose the checkpoint
_SIZES = (0, 1, 2, 3, 5, 8, 13, 20, 32, 50)
_MOST_PEOPLE = 512
_START = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
_SCALES = np.array([0.5, 0.5, 0.2, 0.2, 1.0, 0.5])  # σ of g₀, g₁, log τ₀, log τ₁, log τ(0), g(0)
_STANDARD_ERRORS = 1.0
_LEAST_GAIN = 5e-4  # nats per choice


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A calibration and what it rests on: nats per choice gained over the population by validation people.

    `step` is that of the checkpoint that it belongs to.
    """

    calibration: Calibration
    people: int
    gain: float
    standard_error: float
    step: int = 0

    @property
    def helps(self) -> bool:
        """Whether contexts help validation people by more than one standard error, and by what is worth a word."""
        return self.gain > max(_STANDARD_ERRORS * self.standard_error, _LEAST_GAIN)

    def as_json(self) -> dict[str, Any]:
        """The values, for a file."""
        numbers = {name: np.asarray(value, np.float64).tolist() for name, value in self.calibration._asdict().items()}
        facts = {name: getattr(self, name) for name in ("people", "gain", "standard_error", "step")}
        return numbers | facts | {"helps": self.helps}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Fitted":
        """The inverse of `as_json`."""
        calibration = Calibration(*(jnp.asarray(values[name], jnp.float32) for name in Calibration._fields))
        return cls(calibration, values["people"], values["gain"], values["standard_error"], values.get("step", 0))


def can_be_calibrated(model: RewardModel) -> bool:
    """Whether z = 0 is the population model."""
    return model.latent == "context" and model.keep_population and model.head == "bilinear"


def fit_calibration(task: RewardTask, fitted: Sequence[tuple[PyTree, Split]]) -> Fitted:
    """Fits the calibration of the main model of a task; see above.

    Args:
      task: the task.
      fitted: variables, and people whom they were not trained on.
    """
    found, sizes = _parts_of_rewards(task, fitted)
    return _fit(found, sizes)


def fit_calibrations_by_others(task: RewardTask, fitted: Sequence[tuple[PyTree, Split]]) -> list[Fitted]:
    """A calibration for each of several fits, from the people of all others."""
    found, sizes = _parts_of_rewards(task, fitted)
    return [_fit([parts for j, parts in enumerate(found) if j != i], sizes) for i in range(len(found))]


def _fit(found: list[list["_Parts"]], sizes: tuple[int, ...]) -> Fitted:
    """From the parts of each fit, by k."""
    parts = [jax.tree.map(lambda *x: jnp.concatenate(x), *of_k) for of_k in zip(*found, strict=True)]
    most = jnp.asarray(float(max(sizes[-1], 1)))

    def log_p(theta: Array) -> Array:
        """(ks, people) sums over targets."""
        calibration = _calibration(theta, most)
        return jnp.stack([_log_likelihood(part, *factors(calibration, part.count)) for part in parts])

    @jax.jit
    def objective(theta: Array) -> Array:
        prior = jnp.square((theta - jnp.asarray(_START, jnp.float32)) / jnp.asarray(_SCALES, jnp.float32))
        return -log_p(theta).mean(0).sum() + 0.5 * prior.sum()

    both = jax.jit(jax.value_and_grad(objective))

    def fit(start: np.ndarray, bounds: list[tuple[float, float]]) -> np.ndarray:
        def evaluated(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = both(jnp.asarray(theta, jnp.float32))
            return float(value), np.asarray(gradient, np.float64)

        return scipy.optimize.minimize(evaluated, start, jac=True, method="L-BFGS-B", bounds=bounds).x

    temperature, free, shut = [(-1.0, 1.0)] * 2 + [(-3.0, 3.0)], [(0.0, 1.0)], [(0.0, 0.0)]
    own = fit(_START, 2 * free + temperature + free)
    everybody = fit(np.zeros(6), 2 * shut + temperature + shut)
    targets = np.asarray(parts[0].weight).sum(-1)
    targets = np.where(targets > 0, targets, 1)
    of_own, of_everybody = (np.asarray(log_p(jnp.asarray(theta, jnp.float32))) for theta in (own, everybody))
    gains = (of_own - of_everybody) / targets

    def fitted(theta: np.ndarray, rows: list[int]) -> Fitted:
        each = gains[rows].mean(0) if rows else np.zeros(len(targets))
        error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else float("inf")
        return Fitted(_calibration(theta, most), len(each), float(each.mean()), error)

    if not fitted(own, [i for i, k in enumerate(sizes) if k == 0]).helps:
        own[4:] = everybody[4:]  # of people without choices
    with_choices = fitted(own, [i for i, k in enumerate(sizes) if k > 0])
    if with_choices.helps:
        return with_choices
    return dataclasses.replace(with_choices, calibration=_calibration(everybody, most))


def _calibration(theta: Any, most: Array) -> Calibration:
    theta = jnp.asarray(theta, jnp.float32)
    return Calibration(theta[:2], theta[2:4], theta[4], theta[5], most)


class _Parts(NamedTuple):
    """Rewards of targets at z = 0, (people, t, r), what points add, (people, s, t, r), and log weights, (people, s).

    `weight` (people, t) is that of the targets, 0 for padding. `lapse` (people,) is the share of choices at random,
    `count` (people,) the number of choices that were read: k, or all that a person has.
    """

    shared: Array
    personal: Array
    log_weights: Array
    listed: Array
    weight: Array
    lapse: Array
    count: Array


def _parts_of_rewards(
    task: RewardTask, fitted: Sequence[tuple[PyTree, Split]]
) -> tuple[list[list[_Parts]], tuple[int, ...]]:
    """The parts of each fit by k, and the ks."""
    model, features = task.model(), jnp.asarray(task.dataset.features)
    people = [_some(eligible_users(split, 0)[0], _MOST_PEOPLE // len(fitted)) for _, split in fitted]
    counts = [np.asarray(split.table.count)[users, 0] for users, (_, split) in zip(people, fitted, strict=True)]
    wanted = max(task.config.train.max_context, *task.config.evaluate.k)
    most = max(min(int(np.median(np.concatenate(counts))), wanted), 0)
    sizes = tuple(k for k in _SIZES if k < most) + ((most,) if most else ())
    read = make_posterior(model, task.config.evaluate.samples)

    @jax.jit
    def rewards_at(variables: PyTree, z: Array, part: Episode) -> Array:
        out: Any = model.apply(variables, part.targets, z, features, method="target_rewards")
        return out

    def parts_of(variables: PyTree, split: Split, users: np.ndarray) -> list[_Parts]:
        table = jax.tree.map(jnp.asarray, split.table)
        episodes = evaluation_episodes(_SEED, 0, table, jnp.asarray(users), max_context=max(most, 1))
        variables = jax.device_put({name: value for name, value in variables.items() if name != "calibration"})
        parts = []
        for k in sizes or (0,):
            part = truncate_context(episodes, k)
            q = read(variables, part.context, features)
            assert isinstance(q, Posterior)
            shared = rewards_at(variables, jnp.zeros((1, *q.mean.shape)), part)
            personal = jnp.moveaxis(rewards_at(variables, jnp.moveaxis(q.points, -2, 0), part) - shared, 0, 1)
            lapse = jnp.zeros(len(users)) if q.lapse is None else q.lapse
            listed, weight = jnp.asarray(real_responses(part.targets)), choice_weights(part.targets)
            count = part.context.mask.sum(-1).astype(jnp.float32)
            parts.append(_Parts(shared[0], personal, q.log_weights, listed, weight, lapse, count))
        return parts

    found = [parts_of(variables, split, users) for (variables, split), users in zip(fitted, people, strict=True)]
    return found, sizes or (0,)


def _some(people: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the people, at random: files are often in the order in which people came."""
    return np.sort(np.random.default_rng(_SEED).permutation(people)[:most])


def _log_likelihood(part: _Parts, g: Array, temperature: Array) -> Array:
    """(people,) Σ_t log p(t | C), with g and τ of each person (people,)."""
    g, temperature = (value[:, None, None, None] for value in (g, temperature))
    values = temperature * (part.shared[:, None] + g * part.personal)
    each = jax.nn.log_softmax(jnp.where(part.listed[:, None], values, -jnp.inf), axis=-1)[..., 0]
    lapse = jnp.where(g[..., 0] > 0, part.lapse[:, None, None], 0.0)
    number = part.listed.sum(-1)[:, None]
    each = lapse_log_likelihood(each, jnp.broadcast_to(lapse, each.shape), jnp.broadcast_to(number, each.shape))
    log_p = jax.nn.logsumexp(each + part.log_weights[..., None], axis=1)
    return (part.weight * jnp.where(part.weight > 0, log_p, 0)).sum(-1)
