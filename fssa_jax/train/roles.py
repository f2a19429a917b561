"""What is trained side by side in a work directory: the model asked for, and the two that it is compared with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from fssa_jax.train.checkpoint import Checkpoints, best_or_latest_variables
from fssa_jax.train.step import TrainState
from fssa_jax.types import PyTree

# "population" is one model for everybody; "oracle" are specialists, who are told the group of a person.
Role = Literal["main", "population", "oracle"]


class _Steps(Protocol):
    steps: int
    population_steps: int
    oracle_steps: int


def steps_of(train: _Steps, role: Role) -> int:
    """How long a role is trained."""
    return {"main": train.steps, "population": train.population_steps, "oracle": train.oracle_steps}[role]


def directory_of(workdir: Path, role: Role) -> Path:
    """Where the checkpoints of a role are."""
    return workdir if role == "main" else workdir / "baselines" / role


def stores_of(workdir: Path, role: Role) -> tuple[Checkpoints, Checkpoints] | None:
    """The best and the latest checkpoints of a role, to read; None before the first of them."""
    parent = directory_of(workdir, role) / "checkpoints"
    if not any(parent.glob("*/*")):
        return None
    best, latest = (Checkpoints(parent / name, 1, read_only=True) for name in ("best", "latest"))
    return (best, latest) if best.steps or latest.steps else None


def restore_variables(workdir: Path, role: Role, like: PyTree = None) -> tuple[PyTree, int] | None:
    """The variables to predict with, and their step: the best by validation, or else the newest. None: there are none.

    Args:
      like: arrays or shapes that they must have, such as `jax.eval_shape` of a model's init gives.

    Raises:
      UserError: no checkpoint can be read, or it holds other arrays than `like`.
    """
    stores = stores_of(workdir, role)
    if stores is None:
        return None
    step, variables = best_or_latest_variables(*stores, like)
    return variables, step


def restore(workdir: Path, role: Role, like: TrainState) -> tuple[PyTree, int] | None:
    """`restore_variables` with the structure of a whole state."""
    return restore_variables(workdir, role, like.variables)


def unfinished(workdir: Path, what: str, steps: Mapping[Role, int]) -> list[str]:
    """One warning for every role, of those with `steps` to go, whose training has not come to its end."""
    out = []
    for role, whole in steps.items():
        done = max((step for store in stores_of(workdir, role) or () for step in store.steps), default=0)
        if done < whole:
            out.append(f"{role} {what}: training is unfinished, step {done} of {whole}; run launch.train again")
    return out
