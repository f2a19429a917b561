"""The tensors of a checkpoint by name, whatever files hold them: safetensors or GGUF."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from fssa_jax.errors import UserError
from fssa_jax.lm.gguf import open_gguf

WEIGHTS, INDEX, GGUF = "model.safetensors", "model.safetensors.index.json", "model.gguf"


class Tensors(Protocol):
    """Tensors by the names that transformers gives them."""

    def names(self) -> set[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a slice of it."""
        ...


def open_tensors(directory: Path) -> Tensors:
    """The tensors of a checkpoint.

    Raises:
      UserError: see `weight_files`; or a file is damaged.
    """
    files = weight_files(directory)
    return open_gguf(files[0]) if files[0].name == GGUF else Shards(files)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint, as transformers chooses them.

    They are model.safetensors, or if there is none the shards that model.safetensors.index.json lists, or else
    model.gguf. Other safetensors files in the directory belong to something else.

    Raises:
      UserError: neither exists, or the index is damaged, lists a file outside the directory, or one that is missing.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file() and (directory / GGUF).is_file():
        return [directory / GGUF]
    if not index.is_file():
        others = ", ".join(sorted(path.name for path in directory.glob("*.safetensors"))[:5])
        found = f"{others} hold something else" if others else "pickled weights are not read"
        raise UserError(f"{directory}: no {WEIGHTS}, and no {INDEX} that lists its shards; {found}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: not an index of shards ({error!r}); download it again") from error
    if outside:
        raise UserError(f"{index}: lists {outside[0]!r}, which is not a file next to it; download the checkpoint again")
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{index}: lists {name}, which is missing; download the checkpoint again")
    return [directory / name for name in names]


class Shards:
    """The tensors of safetensors files by name; each is read on demand from memory-mapped files."""

    def __init__(self, files: Sequence[Path]):
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            try:
                self._open[file] = safe_open(str(file), "numpy")
                names = list(self._open[file].keys())
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: truncated or damaged ({error}); download it again") from error
            twice = next((name for name in names if name in self._where), None)
            if twice is not None:
                raise UserError(f"{self._where[twice]} and {file} both hold {twice}; remove one of them")
            self._where |= dict.fromkeys(names, file)

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._open[self._where[name]].get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a slice of it."""
        file = self._open[self._where[name]]
        return file.get_slice(name)[index] if index else file.get_tensor(name)
