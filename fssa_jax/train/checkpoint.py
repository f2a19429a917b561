"""Checkpoints with orbax: the latest few to resume from, and the best by validation to use.

A checkpoint is a directory named by its step:

    arrays/        an orbax checkpoint of separately readable parts: "variables" for prediction, and the rest of the
                   training state; each is a flat dictionary from paths to arrays
    digests.json   the step, and the checksums of every array and of every file in `arrays`
    metrics.json   validation metrics, if any
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypedDict, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike
from orbax.checkpoint import v1 as ocp

from fssa_jax.errors import UserError
from fssa_jax.files import clean, digest_file, remove_directory, seal, unseal, whole_directory
from fssa_jax.train.digests import Digest, check_array, digest_array
from fssa_jax.types import PyTree

Parts = Mapping[str, PyTree]  # by name, among them "variables"
_Flat = dict[str, jax.Array]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class _Digests(TypedDict):
    step: int
    files: dict[str, int]
    arrays: dict[str, dict[str, Digest]]


class Checkpoints:
    """A directory of checkpoints, each written atomically; the newest `keep` are kept.

    A checkpoint is removed only after a newer one is complete. With `read_only` nothing is created or removed, so other
    programs can read while a training run writes.
    """

    def __init__(self, directory: Path, keep: int, read_only: bool = False):
        self.directory = directory.absolute()
        self._keep = keep
        if read_only:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{directory}: cannot be written ({reason}); give another --workdir") from error
        clean(self.directory)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal() and path.is_dir())

    def save(self, step: int, parts: Parts, metrics: dict[str, float] | None = None) -> None:
        """Writes a checkpoint, replacing one of the same step, and waits until it is complete.

        Raises:
          UserError: it cannot be written. Older checkpoints are untouched.
        """
        if not self.directory.is_dir():
            raise UserError(f"{self.directory}: was removed while it was in use; step {step} is not saved")
        flat = {name: flatten(tree) for name, tree in parts.items()}
        arrays = {name: {path: digest_array(x) for path, x in part.items()} for name, part in flat.items()}
        try:
            with whole_directory(self._path(step)) as target:
                ocp.save_checkpointables(str(target / "arrays"), flat)
                written = sorted(path for path in (target / "arrays").rglob("*") if path.is_file())
                files = {path.relative_to(target).as_posix(): digest_file(path) for path in written}
                digests: _Digests = {"step": step, "files": files, "arrays": arrays}
                (target / "digests.json").write_text(json.dumps(seal(digests)))
                if metrics is not None:
                    (target / "metrics.json").write_text(json.dumps(seal(metrics)))
        except Exception as error:  # the storage layer raises many kinds: full, read-only, gone
            survivors = [s for s in self.steps if s != step]
            last = f"the last good checkpoint is step {survivors[-1]}" if survivors else "there is none before"
            reason = _first_line(error.__cause__ or error if isinstance(error, UserError) else error)
            raise UserError(f"{self.directory}: step {step} cannot be written ({reason}); {last}") from error
        # Checkpoints of later steps were damaged, and training resumed from an earlier one.
        kept = [s for s in self.steps if s <= step][-self._keep :]
        for old in set(self.steps) - set(kept):
            remove_directory(self._path(old))  # atomic: readers never see a partial one

    def restore(self, like: Parts) -> tuple[int, Parts] | None:
        """(step, parts) of the newest readable checkpoint, on the devices of `like`; None without checkpoints.

        A damaged checkpoint is named in a warning, and the previous one is tried.

        Raises:
          UserError: there are checkpoints, but none is readable; or one holds other arrays than `like`.
        """
        return self._found(self._newest(lambda step: self._load_parts(step, like)))

    def load_variables(self, like: PyTree = None) -> tuple[int, PyTree] | None:
        """(step, variables) of the newest readable checkpoint, as host arrays; None without checkpoints.

        The shapes are read from the checkpoint: no optimiser, no data and no device is needed.

        Args:
          like: a tree with the expected arrays or shapes, in whose structure the variables are returned. Without it
            they are returned as nested dictionaries.

        Raises:
          UserError: there are checkpoints, but none is readable; or one holds other arrays than `like`.
        """
        return self._found(self._newest(lambda step: self._load_variables(step, like)))

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that were saved with a checkpoint; empty, with a warning, if their file is damaged."""
        file = self._path(step) / "metrics.json"
        if not file.exists():
            return {}
        try:
            return unseal(json.loads(file.read_bytes()))
        except (ValueError, RecursionError, OSError) as error:
            _log.warning("%s: damaged (%s); the checkpoint is treated as one without metrics", file, _first_line(error))
            return {}

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _newest(self, read: Callable[[int], _T]) -> tuple[int, _T] | None:
        for step in reversed(self.steps):
            try:
                return step, read(step)
            except UserError:  # intact, but of another model
                raise
            except Exception as error:  # damaged files surface as many kinds of error
                if step not in self.steps:  # the training run has removed it meanwhile
                    return self._newest(read)
                _log.warning(
                    "%s: checkpoint %d is damaged (%s); trying the one before", self.directory, step, _first_line(error)
                )
        return None

    def _found(self, found: _T | None) -> _T | None:
        if found is None and self.steps:
            raise UserError(f"{self.directory}: no readable checkpoint; train into a new --workdir")
        return found

    def _load_parts(self, step: int, like: Parts) -> Parts:
        flat = {name: flatten(tree) for name, tree in like.items()}
        digests = self._check_files(step, flat)
        for name, part in flat.items():
            self._check_structure(step, part, digests[name])
        abstract = {name: {path: _abstract(x) for path, x in part.items()} for name, part in flat.items()}
        loaded = self._load_arrays(step, abstract, digests)
        return {name: _unflatten(loaded[name], tree) for name, tree in like.items()}

    def _load_variables(self, step: int, like: PyTree) -> PyTree:
        digests = self._check_files(step, ["variables"])
        if like is not None:
            self._check_structure(step, flatten(like), digests["variables"])
        on_host = {"variables": dict.fromkeys(digests["variables"], np.ndarray)}
        flat = self._load_arrays(step, on_host, digests)["variables"]
        return _unflatten(flat, like) if like is not None else nest(flat)

    def _check_files(self, step: int, parts: Collection[str]) -> dict[str, dict[str, Digest]]:
        """Checks the files that these parts need, and returns the digests of the arrays.

        Orbax must not read damaged files: its threads print tracebacks that cannot be caught.
        """
        path = self._path(step)
        digests: _Digests = unseal(json.loads((path / "digests.json").read_bytes()))
        if digests["step"] != step:
            raise ValueError(f"it is of step {digests['step']}")
        others = tuple(f"arrays/{name}/" for name in digests["arrays"] if name not in parts)
        for file, crc32 in digests["files"].items():
            if not file.startswith(others) and digest_file(path / file) != crc32:
                raise ValueError(f"the checksum of {file} does not match")
        return digests["arrays"]

    def _load_arrays(
        self, step: int, abstract: dict[str, PyTree], digests: dict[str, dict[str, Digest]]
    ) -> dict[str, _Flat]:
        loaded: dict[str, _Flat] = ocp.load_checkpointables(str(self._path(step) / "arrays"), abstract)
        for name, part in loaded.items():
            for path, x in part.items():
                check_array(f"{name}/{path}", x, digests[name][path])
        return loaded

    def _check_structure(self, step: int, like: _Flat, digests: dict[str, Digest]) -> None:
        wanted = {path: f"{tuple(x.shape)} {x.dtype}" for path, x in like.items()}
        held = {path: f"{tuple(digest['shape'])} {digest['dtype']}" for path, digest in digests.items()}
        for path in sorted({*wanted, *held}):
            if wanted.get(path) != held.get(path):
                raise UserError(
                    f"{self._path(step)}: {path} is {held.get(path, 'absent')} there and {wanted.get(path, 'absent')} "
                    "in the model; train into a new --workdir"
                )


def best_or_latest_variables(best: Checkpoints, latest: Checkpoints, like: PyTree = None) -> tuple[int, PyTree]:
    """(step, variables) to use: the best by validation, or the newest if the best is not readable.

    See `Checkpoints.load_variables`.

    Raises:
      UserError: neither is readable, or one holds other arrays than `like`.
    """
    found = best._newest(lambda step: best._load_variables(step, like))
    if found is None and best.steps:
        _log.warning("%s: no readable checkpoint; using the latest one", best.directory)
    found = found or latest.load_variables(like)
    if found is None:
        raise UserError(f"{latest.directory}: no checkpoint")
    return found


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def flatten(tree: PyTree) -> _Flat:
    """Leaves by their path, joined by slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(flat) < len(leaves):
        raise ValueError(f"wanted names without a slash, got paths that are the same: {sorted(flat)}")
    return flat


def _unflatten(flat: _Flat, like: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[path] for path in flatten(like)])


def nest(flat: Mapping[str, ArrayLike]) -> PyTree:
    """The nested dictionaries that `flatten` made flat."""
    tree: dict[str, PyTree] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
