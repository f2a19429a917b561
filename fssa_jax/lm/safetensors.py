"""Parameters read from safetensors files and written to them. No pickle, no remote code, no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fssa_jax.errors import UserError
from fssa_jax.files import replaceable, whole_directory
from fssa_jax.lm.weight_map import IGNORED, Weight, weight_map, weight_of
from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.types import PyTree


class _Shards:
    """The tensors of all safetensors files of a directory, by name; read one at a time from memory-mapped files."""

    def __init__(self, directory: Path):
        index = directory / "model.safetensors.index.json"
        files = sorted(directory.glob("*.safetensors"))
        if index.is_file():
            try:
                files = sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise UserError(f"{index}: not an index of shards ({error!r}); download it again") from error
        if not files:
            raise UserError(f"{directory}: no .safetensors file; pickled weights are not read")
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            try:
                self._open[file] = safe_open(str(file), "numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: truncated or damaged ({error}); download it again") from error
            self._where |= dict.fromkeys(self._open[file].keys(), file)

    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[self._where[name]].get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or the part of it that an index of slices asks for."""
        file = self._open[self._where[name]]
        return file.get_slice(name)[index] if index else file.get_tensor(name)


def load_params(
    directory: Path,
    config: DecoderConfig | BertConfig,
    dtype: Any = None,
    sharding: Callable[[tuple[str | int, ...], tuple[int, ...]], jax.sharding.Sharding | None] | None = None,
) -> PyTree:
    """Parameters of a checkpoint, leaf by leaf straight to their devices and type.

    On the host there is one leaf at a time; of a leaf that is sharded over devices, the part of one device.

    Args:
      directory: with one or many .safetensors files.
      config: what `read_config` gave.
      dtype: of the parameters; as stored by default.
      sharding: of a leaf, from its path, such as ("layers", 0, "query", "kernel"), and shape; None for the default
        device.

    Returns:
      {"params": …} as `Decoder` or `BertEncoder` take it.

    Raises:
      UserError: a file is damaged, or tensors are missing, are not known, or have another shape: all are listed.
    """
    shards = _Shards(directory)
    names = shards.names()
    weights = weight_map(config)
    # Some files were saved from the model without its head ("layers.0…"), others from a model around it ("bert.…").
    prefix = _prefix(names, weights)
    wanted = {prefix(weight.name): weight for weight in weights}
    _check_names(directory, shards, wanted, config)
    params: PyTree = {"layers": [{} for _ in range(config.layers)]}
    for name, weight in wanted.items():
        place = sharding(weight.path, weight.shape) if sharding is not None else None
        if place is None:
            array = jax.device_put(_piece(shards, weight, name, dtype))
        else:
            array = _placed(shards, weight, name, dtype, place)
        node = params
        for part in weight.path[:-1]:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        node[weight.path[-1]] = jax.block_until_ready(array)
    return {"params": params}


def _check_names(
    directory: Path, shards: _Shards, wanted: dict[str, Weight], config: DecoderConfig | BertConfig
) -> None:
    """Raises `UserError`, in one line, that lists what does not fit."""
    names = shards.names()
    tied = isinstance(config, DecoderConfig) and config.tied
    extra = {n for n in names - set(wanted) if not n.endswith(IGNORED) and not (tied and n == "lm_head.weight")}
    if isinstance(config, BertConfig):
        extra = {n for n in extra if not n.startswith("cls.")}
    wrong = []
    for name, weight in wanted.items():
        shape = weight.shape[::-1] if weight.transposed else weight.shape
        if name in names and shards.shape(name) != shape:
            wrong.append(f"{name} {shards.shape(name)} instead of {shape}")
    problems = [("missing", sorted(set(wanted) - names)), ("not known", sorted(extra)), ("of another shape", wrong)]
    said = "; ".join(f"{len(p)} {what}: {', '.join(p[:20])}{' …' if len(p) > 20 else ''}" for what, p in problems if p)
    if said:
        raise UserError(f"{directory}: the tensors do not fit config.json; {said}")


def _piece(
    shards: _Shards, weight: Weight, name: str, dtype: Any, index: tuple[slice, ...] | None = None
) -> np.ndarray:
    """The part of a parameter that an index of slices asks for, all of it by default; nothing else is read."""
    index = index or (slice(None),) * len(weight.shape)
    tensor = shards.read(name, index[::-1] if weight.transposed else index)
    out = np.ascontiguousarray(tensor.T if weight.transposed else tensor)
    return out if dtype is None else out.astype(dtype, copy=False)


def _placed(shards: _Shards, weight: Weight, name: str, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A parameter on its devices. One part at a time is on the host: what devices share is read once for all."""
    parts: dict[str, tuple[Any, list[Any]]] = {}
    for device, index in sharding.addressable_devices_indices_map(weight.shape).items():
        parts.setdefault(str(index), (index, []))[1].append(device)
    arrays = []
    for index, devices in parts.values():
        part = _piece(shards, weight, name, dtype, index)
        arrays += [jax.block_until_ready(jax.device_put(part, device)) for device in devices]
    return jax.make_array_from_single_device_arrays(weight.shape, sharding, arrays)


def _prefix(names: set[str], weights: list[Weight]) -> Callable[[str], str]:
    first = weights[0].name
    if first in names:
        return lambda name: name
    if first.startswith("model.") and first.removeprefix("model.") in names:
        return lambda name: name.removeprefix("model.")
    before = next((n.removesuffix(first) for n in names if n.endswith(f".{first}")), "")
    return lambda name: before + name


def save_params(
    directory: Path, variables: PyTree, config: DecoderConfig | BertConfig, source: Path, shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a checkpoint in the same format, whole or not at all; all that is not a weight is copied from `source`.

    Files hold up to `shard_bytes` each, and no more than one of them is on the host at a time.

    Raises:
      UserError: the directory holds anything but a checkpoint.
    """
    directory = replaceable(directory, "config.json")
    if (directory / "checkpoints").is_dir():
        raise UserError(f"{directory}: a work directory; give a new directory")
    files: list[list[Weight]] = [[]]
    total = filled = 0
    for weight in weight_map(config):
        size = weight_of(variables, weight).nbytes
        if files[-1] and filled + size > shard_bytes:
            files.append([])
            filled = 0
        files[-1].append(weight)
        filled, total = filled + size, total + size
    with whole_directory(directory) as target:
        where = {}
        for number, weights in enumerate(files, 1):
            file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            out = {}
            for weight in weights:
                tensor = np.asarray(weight_of(variables, weight))
                out[weight.name] = np.ascontiguousarray(tensor.T if weight.transposed else tensor)
                where[weight.name] = file
            save_file(out, str(target / file), metadata={"format": "pt"})
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        for file in source.rglob("*"):
            plain = file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja")
            if plain and "safetensors" not in file.name:
                copy = target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())


def param_count(variables: PyTree) -> int:
    """Number of parameters."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(variables))
