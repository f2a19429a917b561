"""Fits that are scored on people whom they have not seen, for decisions before the training proper.

Where validation people are few, every person but those for testing is held out once, by one of several folds. One
compiled program serves all folds and all weights of the penalties. Nothing is written.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import RewardConfig
from fssa_jax.data.dataset import Dataset, Split, arrays_of
from fssa_jax.data.folds import fold_of_people, pooled, some_people, without_fold
from fssa_jax.errors import Stopped
from fssa_jax.models.ensemble import stacked
from fssa_jax.progress import doing
from fssa_jax.tasks.pooled import PooledPredictor
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import RewardTask, Tables, penalties_of
from fssa_jax.tasks.task import MAIN, POPULATION
from fssa_jax.train.loop import StopSignal
from fssa_jax.train.parallel import compile_steps
from fssa_jax.train.state import TrainState, start_state
from fssa_jax.train.step import make_step, many_steps
from fssa_jax.types import ChoiceTable, PyTree

CALL = 25  # steps per call
POPULATION_STEPS = 200  # of population models, whose penalties make early stopping unnecessary
_FEW, _FOLDS = 64, 4  # with fewer validation people than this, everybody is held out once


@dataclasses.dataclass(frozen=True)
class Folds:
    """People, each of whom is held out by one fold; a fold trains on the rest, or on the training people alone."""

    people: Split
    fold: np.ndarray
    datasets: tuple[Dataset, ...]

    @classmethod
    def of(cls, dataset: Dataset, splits: Sequence[str], number: int, seed: int) -> "Folds":
        """Divides the people of these splits into folds.

        Raises:
          UserError: fewer people than folds.
        """
        people = pooled([dataset.splits[name] for name in splits])
        fold = fold_of_people(people.users, number, seed)
        return cls(people, fold, tuple(without_fold(dataset, people, fold, i) for i in range(number)))

    @classmethod
    def for_decisions(cls, dataset: Dataset, seed: int) -> "Folds":
        """The validation people; where they are few, folds of all people but those for testing."""
        validation = dataset.splits["val"]
        number = min(_FOLDS, sum(len(dataset.splits[name].users) for name in ("train", "val")))
        if len(validation.users) < _FEW and number > 1:
            return cls.of(dataset, ("train", "val"), number, seed)
        return cls(validation, np.zeros(len(validation.users), int), (dataset,))

    def __len__(self) -> int:
        return len(self.datasets)

    def fewer(self, share: float, seed: int) -> "Folds":
        """The same folds with a random share of the training people of each, one at least."""
        rng, out = np.random.default_rng(seed), []
        for dataset in self.datasets:
            training = dataset.splits["train"]
            kept = rng.permutation(len(training.users))[: max(round(share * len(training.users)), 1)]
            splits = dataset.splits | {"train": some_people(training, np.sort(kept))}
            out.append(dataclasses.replace(dataset, splits=splits))
        return dataclasses.replace(self, datasets=tuple(out))


class FoldFits:
    """Models of every fold, trained for a fixed number of steps; remembered, and compiled once per kind of model.

    The models of an ensemble are fitted one by one, and shared with fits of the same model alone.

    Args:
      folds: the people.
      stop: ends a fit with `Stopped`.
      population_steps: steps of the population models.
    """

    def __init__(self, folds: Folds, stop: StopSignal, population_steps: int = POPULATION_STEPS):
        self.folds, self._stop, self._population_steps = folds, stop, population_steps
        # People are repeated up to the same number, so that one program serves all folds.
        self._users = max(len(dataset.splits["train"].users) for dataset in folds.datasets)
        self._programs: dict[tuple[str, int], Any] = {}
        self._binds: dict[str, Callable[[PyTree], Predictor]] = {}
        self._inits: dict[str, PyTree] = {}
        self._starts: dict[str, Callable[[PyTree], TrainState]] = {}
        self._fitted: dict[str, list[TrainState]] = {}
        self._reached: dict[tuple[str, int], list[PyTree]] = {}
        self._populations: dict[tuple, list[PyTree]] = {}

    def fewer(self, share: float, seed: int) -> "FoldFits":
        """Fits of the same folds with a share of the training people, by the same programs."""
        out = copy.copy(self)
        out.folds = self.folds.fewer(share, seed)
        out._fitted, out._reached, out._populations = {}, {}, {}
        return out

    def population(self, config: RewardConfig) -> list[PyTree]:
        """The variables of the population model of each fold; of the configuration, its penalties alone matter."""
        key = (config.objective.population_penalty, config.objective.text_bias_penalty)
        if key not in self._populations:
            self._populations[key] = self._fit(config, POPULATION, self._population_steps, [{}] * len(self.folds))
        return self._populations[key]

    def main(self, config: RewardConfig, steps: int) -> list[PyTree]:
        """The variables of the main model of each fold, which starts from the population model of the fold."""
        members = RewardTask(config, self.folds.datasets[0]).members(MAIN)
        if len(members) > 1:
            each = [self.main(member.config, steps) for member in members]
            return [stacked(of_fold) for of_fold in zip(*each, strict=True)]
        return self._fit(config, MAIN, steps, [{POPULATION: one} for one in self.population(config)])

    def predictor(self, config: RewardConfig, name: str, fitted: Sequence[PyTree]) -> Predictor:
        """Predicts each person, by row of `folds.people`, with the model that did not see them."""
        key = _kind(config, name)
        if key not in self._binds:
            self._binds[key] = RewardTask(config, self.folds.datasets[0]).predictor(name, self.folds.people)
        return PooledPredictor.of([self._binds[key](variables) for variables in fitted], self.folds.fold)

    def _fit(
        self, config: RewardConfig, name: str, steps: int, trained: Sequence[Mapping[str, PyTree]]
    ) -> list[PyTree]:
        """The variables after `steps` steps; a fit goes on from the longest one with the same settings so far.

        Raises:
          Stopped: a signal was received.
        """
        key = _settings(config, name)
        if (key, steps) in self._reached:
            return self._reached[key, steps]
        tasks = [RewardTask(config, dataset) for dataset in self.folds.datasets]
        states = self._fitted.get(key)
        if states is None or int(states[0].step) > steps:
            states = [self._start(task, name, models) for task, models in zip(tasks, trained, strict=True)]
        penalties = {part: jnp.asarray(weight) for part, weight in penalties_of(config.objective).items()}
        out, left = [], steps - int(states[0].step)
        with doing(f"{name}: {len(tasks)} fits", left * len(tasks), "steps") as work:
            for task, state in zip(tasks, states, strict=True):
                tables = task.tables("train")
                tables = Tables(_repeated(tables.choices, self._users), tables.features, penalties)
                for done in range(0, left, CALL):
                    number = min(CALL, left - done)
                    state, _ = self._program(tasks[0], name, number)(state, tables)
                    work.add(number)
                    if self._stop.received:
                        raise Stopped(
                            f"{name}: stopped; what was trained before is saved; run the same command to go on"
                        )
                out.append(state)
        self._fitted[key] = out
        self._reached[key, steps] = [jax.device_get(state.variables) for state in out]
        return self._reached[key, steps]

    def _start(self, task: RewardTask, name: str, models: Mapping[str, PyTree]) -> TrainState:
        key = _kind(task.config, name)
        if key not in self._inits:
            self._inits[key] = jax.device_get(task.init(name))
        variables = task.warm(name, jax.tree.map(jnp.asarray, self._inits[key]), models)
        average = task.config.optim.average_decay > 0
        if key not in self._starts:
            self._starts[key] = jax.jit(partial(start_state, optimizer=task.optimizer(name), average=average))
        return self._starts[key](variables)

    def _program(self, task: RewardTask, name: str, number: int):
        config, key = task.config, (_kind(task.config, name), number)
        if key not in self._programs:
            step = make_step(
                task.loss(name),
                task.draw(name),
                task.optimizer(name),
                users=task.rows,
                seed=config.seed,
                accumulate=config.train.accumulate,
                average_decay=config.optim.average_decay,
            )
            self._programs[key] = compile_steps(many_steps(step, number), "none")
        return self._programs[key]


def _kind(config: RewardConfig, name: str) -> str:
    """What the programs of a model depend on: not the weights of the penalties, nor the number of steps."""
    return _settings(with_penalties(config, 0.0), name)


def with_penalties(config: RewardConfig, factor: float) -> RewardConfig:
    """The configuration with all weights of penalties times a factor."""
    config = copy.deepcopy(config)
    for weight in ("response_penalty", "population_penalty", "text_penalty", "text_bias_penalty"):
        setattr(config.objective, weight, factor * getattr(config.objective, weight))
    parts = getattr(config.model, "parts", ())
    for part in parts:
        part.response_penalty, part.text_penalty = factor * part.response_penalty, factor * part.text_penalty
    return config


def _settings(config: RewardConfig, name: str) -> str:
    """What the fits of a model depend on: not the number of steps, nor when they are validated and saved."""
    train = config.train
    drawn = (train.users, train.max_context, train.targets, train.accumulate, train.factor_steps)
    rate = train.population_learning_rate if name == POPULATION else 0.0
    parts = (name, config.model, config.objective, config.optim, config.evaluate.samples, config.seed, rate, drawn)
    return repr(parts)


def _repeated(table: ChoiceTable, users: int) -> ChoiceTable:
    rows = np.arange(users) % len(np.asarray(table.count))
    return ChoiceTable(**{name: jnp.asarray(array[rows]) for name, array in arrays_of(table).items()})
