"""Checkpoints by orbax: the latest few to resume from, and the best by validation to use."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from fssa_jax.errors import UserError
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)


def abstract(tree: PyTree) -> PyTree:
    """Shapes, types and placement of a tree: what restoring needs to know."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Checkpoints:
    """One directory of checkpoints, each written whole or not at all, the newest `keep` kept.

    A checkpoint is removed only after a newer one is complete. With `read_only` nothing is made or removed, so
    that others may read while a training run writes.
    """

    def __init__(self, directory: Path, keep: int, read_only: bool = False):
        self.directory = directory.absolute()
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            policy: Any = ocp.training.preservation_policies.LatestN(keep)
            self._orbax = ocp.training.Checkpointer(
                str(self.directory), preservation_policy=policy, cleanup_tmp_directories=not read_only
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{directory}: cannot be written ({reason}); give another --workdir") from error

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(point.step for point in self._orbax.checkpoints)

    def save(self, step: int, tree: PyTree, metrics: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint, in place of one of the same step, and waits until it is complete.

        Raises:
          UserError: it cannot be written. Older checkpoints are untouched.
        """
        try:
            self._orbax.save(step, tree, metrics=metrics, force=True, overwrite=True)
        except Exception as error:  # the storage layer raises many kinds: full, read-only, gone
            survivors = [s for s in self.steps if s != step]
            last = f"the last good checkpoint is step {survivors[-1]}" if survivors else "there is none before"
            reason = _first_line(error)
            raise UserError(f"{self.directory}: step {step} cannot be written ({reason}); {last}") from error

    def restore(self, like: PyTree) -> tuple[int, PyTree] | None:
        """(step, tree) of the newest checkpoint that can be read; None if there is no checkpoint.

        A damaged one is named in a warning, and the one before is tried.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        for step in reversed(self.steps):
            try:
                return step, self._orbax.load(step, abstract(like))
            except Exception as error:  # damaged files surface as many kinds of error
                _log.warning(
                    "%s: checkpoint %d is damaged (%s); trying the one before", self.directory, step, _first_line(error)
                )
        if self.steps:
            raise UserError(f"{self.directory}: no readable checkpoint; train into a new --workdir")
        return None

    def metrics(self, step: int) -> dict[str, Any]:
        """The metrics that were saved with a checkpoint."""
        with contextlib.suppress(Exception):
            return dict(self._orbax.metadata(step).metrics or {})  # type: ignore[call-overload]
        return {}

    def close(self) -> None:
        """Waits for what is under way."""
        self._orbax.close()


def best_or_latest(best: Checkpoints, latest: Checkpoints, like: PyTree) -> tuple[int, PyTree]:
    """(step, tree) to use: the best by validation, or where that cannot be read the newest.

    Raises:
      UserError: neither can be read.
    """
    try:
        found = best.restore(like)
    except UserError as error:
        _log.warning("%s; using the latest checkpoint", error)
        found = None
    found = found or latest.restore(like)
    if found is None:
        raise UserError(f"{latest.directory}: no checkpoint")
    return found


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
