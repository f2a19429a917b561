"""What an experiment trains and compares: the protocol that reward models, policies and bases follow."""

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

    A task trains one or more models by name, one after the other: the main one, and those that it is compared with.
    Everything else about an experiment (loops, checkpoints, work directories, evaluation) is written once, on top of
    this.

    Attributes:
      config: its configuration, with what the data decide.
      dataset: people, texts and features.
    """

    config: Any
    dataset: Dataset

    @property
    def names(self) -> tuple[str, ...]:
        """What is trained, in this order."""
        ...

    @property
    def rows(self) -> int:
        """Users, or texts, of a batch."""
        ...

    def steps(self, name: str) -> int:
        """How long a model is trained."""
        ...

    def reads(self, name: str) -> bool:
        """Whether a model reads choices."""
        ...

    def optim(self, name: str) -> AdamW:
        """Settings of a model's optimiser."""
        ...

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """Of a model."""
        ...

    def start(self, name: str, trained: Mapping[str, PyTree]) -> PyTree:
        """The variables of a model at step 0, given the best variables of those that were trained before."""
        ...

    def tables(self, split: str) -> Any:
        """What rows of batches point into, on the device."""
        ...

    def draw(self, name: str) -> Draw:
        """How the rows of a batch are drawn; see `train.step`."""
        ...

    def loss(self, name: str, plan: Plan | None = None) -> Loss:
        """What a model minimises; texts are padded by `plan`."""
        ...

    def texts(self, rows: Any) -> Any | None:
        """The texts of the rows of a batch, in the order in which they are scored; None where there are none to pad."""
        ...

    def whose(self, rows: Any) -> str:
        """Words for the rows of a batch, for the message of a loss that is not finite."""
        ...

    def predictor(self, name: str, split: Split) -> Callable[[PyTree], Predictor]:
        """variables ↦ what a model predicts of the people of a split."""
        ...

    def finish(self, directory: Path, variables: PyTree) -> None:
        """Called with the best variables of the main model at the end of the training."""
        ...
