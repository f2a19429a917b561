"""The `Task` protocol: what an experiment trains and compares, for reward models, policies and bases."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import optax

from fssa_jax.config import AdamW
from fssa_jax.data.dataset import Dataset, Split
from fssa_jax.ops.padding import Plan
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.train.step import Draw, Loss
from fssa_jax.types import PyTree

MAIN = "main"
POPULATION = "population"
SPECIALIST = "specialist"


class Task(Protocol):
    """One kind of experiment.

    A task trains one or more named models, one after the other: the main model and its baselines. Everything else in an
    experiment (loops, checkpoints, work directories, evaluation) is written once, on top of this protocol.

    Attributes:
      config: the configuration, with settings resolved from the data.
      dataset: people, texts and features.
    """

    config: Any
    dataset: Dataset

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models, in the order of training."""
        ...

    @property
    def rows(self) -> int:
        """Users, or texts, per batch."""
        ...

    def steps(self, name: str) -> int:
        """Number of training steps of a model."""
        ...

    def reads(self, name: str) -> bool:
        """Whether a model reads choices."""
        ...

    def optim(self, name: str) -> AdamW:
        """Settings of a model's optimiser."""
        ...

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """The optimiser of a model."""
        ...

    def start(self, name: str, trained: Mapping[str, PyTree]) -> PyTree:
        """The variables of a model at step 0, given the best variables of the models trained before."""
        ...

    def tables(self, split: str) -> Any:
        """The tables that the rows of batches index, on the device."""
        ...

    def draw(self, name: str) -> Draw:
        """The function that draws the rows of a batch; see `train.step`."""
        ...

    def loss(self, name: str, plan: Plan | None = None) -> Loss:
        """The loss of a model; texts are padded by `plan`."""
        ...

    def texts(self, rows: Any) -> Any | None:
        """The texts of a batch's rows, in the order of scoring, (…, n) with n texts per padded row; None if there is
        nothing to pad."""
        ...

    def whose(self, rows: Any) -> str:
        """A description of a batch's rows, for the error message of a loss that is not finite."""
        ...

    def predictor(self, name: str, split: Split) -> Callable[[PyTree], Predictor]:
        """variables ↦ the predictor of a model for the people of a split."""
        ...

    def finish(self, directory: Path, variables: PyTree) -> None:
        """Called at the end of training with the best variables of the main model."""
        ...
