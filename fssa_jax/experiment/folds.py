"""Fits with each fold of the people held out in turn: what a data set has too few validation people for.

The steps are those that were best with the validation people of the work directory, so nothing is validated on the way,
and one compiled program trains all folds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import numpy as np

from fssa_jax.config import RewardConfig
from fssa_jax.data.dataset import Dataset, Split, arrays_of
from fssa_jax.data.folds import fold_of_people, pooled, some_people, without_fold
from fssa_jax.errors import Stopped
from fssa_jax.progress import doing
from fssa_jax.tasks.pooled import PooledPredictor
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import RewardTask, Tables
from fssa_jax.tasks.task import MAIN, POPULATION
from fssa_jax.train.loop import StopSignal
from fssa_jax.train.parallel import compile_steps
from fssa_jax.train.state import start_state
from fssa_jax.train.step import make_step, many_steps
from fssa_jax.types import ChoiceTable, PyTree

_CALL = 25  # steps per call
_FEW, _FOLDS = 64, 4  # fewer validation people than this are too few: everybody is held out once, in folds


@dataclasses.dataclass(frozen=True)
class Folds:
    """The people of some splits, each of whom is held out by one fold."""

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

    def tasks(self, config: RewardConfig) -> list[RewardTask]:
        """A task for each fold, which trains on the others."""
        return [RewardTask(config, dataset) for dataset in self.datasets]

    def predictor(self, config: RewardConfig, name: str, fitted: Sequence[PyTree]) -> Predictor:
        """Predicts each person, by row of `people`, with the model that did not see them."""
        bind = self.tasks(config)[0].predictor(name, self.people)
        return PooledPredictor.of([bind(variables) for variables in fitted], self.fold)

    def fewer(self, share: float, seed: int) -> "Folds":
        """The same folds with a random share of the training people of each, one at least."""
        rng, out = np.random.default_rng(seed), []
        for dataset in self.datasets:
            training = dataset.splits["train"]
            kept = rng.permutation(len(training.users))[: max(round(share * len(training.users)), 1)]
            splits = dataset.splits | {"train": some_people(training, np.sort(kept))}
            out.append(dataclasses.replace(dataset, splits=splits))
        return dataclasses.replace(self, datasets=tuple(out))


def folds_of_few(dataset: Dataset, seed: int) -> Folds | None:
    """Folds of the people for training and validation, where those for validation are too few to decide anything."""
    splits = ("train", "val")
    number = min(_FOLDS, sum(len(dataset.splits[name].users) for name in splits))
    few = len(dataset.splits["val"].users) < _FEW and number > 1
    return Folds.of(dataset, splits, number, seed) if few else None


class FoldFits:
    """Trains models on the folds with the settings of one configuration; compiled once per model.

    Raises:
      Stopped: a signal was received.
    """

    def __init__(self, config: RewardConfig, stop: StopSignal):
        self.config, self.stop = config, stop
        self._calls = {}

    def population(self, folds: Folds, steps: int) -> list[PyTree]:
        """The population model of each fold."""
        return self._fit(folds, POPULATION, steps, [{}] * len(folds.datasets))

    def main(self, folds: Folds, steps: int, populations: Sequence[PyTree]) -> list[PyTree]:
        """The main model of each fold, which starts from its population model."""
        return self._fit(folds, MAIN, steps, [{POPULATION: one} for one in populations])

    def _fit(self, folds: Folds, name: str, steps: int, trained: Sequence[Mapping[str, PyTree]]) -> list[PyTree]:
        """The variables of a model after `steps` steps, for each fold, from the models of the fold."""
        tasks = folds.tasks(self.config)
        optimizer = tasks[0].optimizer(name)
        start = jax.jit(partial(start_state, optimizer=optimizer, average=self.config.optim.average_decay > 0))
        # People are repeated up to the same number, so that one program serves all folds.
        users = max(len(task.dataset.splits["train"].users) for task in tasks)
        out = []
        with doing(f"{name}: {len(tasks)} folds", steps * len(tasks), "steps") as work:
            for task, models in zip(tasks, trained, strict=True):
                tables, state = task.tables("train"), start(task.start(name, models))
                tables = Tables(_repeated(tables.choices, users), tables.features)
                done = 0
                while done < steps:
                    number = min(_CALL, steps - done)
                    state, _ = self._call(name, tasks[0], optimizer, number)(state, tables)
                    done += number
                    work.add(number)
                    if self.stop.received:
                        raise Stopped(
                            f"{name}: stopped while folds were fitted; run the same command to start them anew"
                        )
                out.append(jax.device_get(state.variables))
        return out

    def _call(self, name: str, task: RewardTask, optimizer, number: int):
        if (name, number) not in self._calls:
            step = make_step(
                task.loss(name),
                task.draw(name),
                optimizer,
                users=task.rows,
                seed=self.config.seed,
                accumulate=self.config.train.accumulate,
                average_decay=self.config.optim.average_decay,
            )
            self._calls[name, number] = compile_steps(many_steps(step, number), "none")
        return self._calls[name, number]


def _repeated(table: ChoiceTable, users: int) -> ChoiceTable:
    rows = np.arange(users) % len(np.asarray(table.count))
    return ChoiceTable(**{name: jax.numpy.asarray(array[rows]) for name, array in arrays_of(table).items()})
