"""Reads parameters of checkpoints, and writes them as safetensors files. No pickle, no remote code, no torch."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from fssa_jax.errors import UserError
from fssa_jax.files import DIGESTS, check_digests, replaceable, whole_directory, write_digests
from fssa_jax.lm.tensor_files import INDEX, WEIGHTS, Tensors, open_tensors
from fssa_jax.lm.weight_map import IGNORED, Weight, weight_map, weight_of
from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

_HEAD = "lm_head.weight"


def with_own_head(directory: Path, config: DecoderConfig) -> DecoderConfig:
    """The configuration, no longer tied if the checkpoint holds a head that differs from the embedding.

    transformers does the same: what the file holds goes before `tie_word_embeddings`.
    """
    shards = open_tensors(directory) if config.tied else None
    if shards is None or _HEAD not in shards.names():
        return config
    weights = weight_map(config)
    embedding = _prefix(shards.names(), weights)(weights[0].name)
    if embedding not in shards.names() or np.array_equal(shards.read(embedding), shards.read(_HEAD)):
        return config
    _log.warning("%s: config.json ties the head to the embedding, but the file has a head of its own", directory)
    return dataclasses.replace(config, tied=False)


def load_params(
    directory: Path,
    config: DecoderConfig | BertConfig,
    dtype: Any = None,
    sharding: Callable[[tuple[str | int, ...], tuple[int, ...]], jax.sharding.Sharding | None] | None = None,
) -> PyTree:
    """Loads the parameters of a checkpoint, leaf by leaf, onto their devices and in their type.

    The host holds one leaf at a time; of a sharded leaf, the part of one device.

    Args:
      directory: holds one or more .safetensors files.
      config: from `read_config`.
      dtype: of the parameters; as stored by default.
      sharding: maps the path of a leaf, such as ("layers", 0, "query", "kernel"), and its shape to its sharding; None
        for the default device.

    Returns:
      {"params": …} for `Decoder` or `BertEncoder`.

    Raises:
      UserError: a file is damaged, or tensors are missing, unknown or of the wrong shape; the message lists all.
    """
    shards = open_tensors(directory)
    names = shards.names()
    weights = weight_map(config)
    # Some files were saved from the model without its head ("layers.0…"), others from a wrapping model ("bert.…").
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
    directory: Path, shards: Tensors, wanted: dict[str, Weight], config: DecoderConfig | BertConfig
) -> None:
    """Raises a `UserError` that lists all mismatches in one line."""
    names = shards.names()
    tied = isinstance(config, DecoderConfig) and config.tied
    extra = {n for n in names - set(wanted) if not n.endswith(IGNORED) and not (tied and n == _HEAD)}
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
    shards: Tensors, weight: Weight, name: str, dtype: Any, index: tuple[slice, ...] | None = None
) -> np.ndarray:
    """A slice of a parameter, all of it by default; nothing else is read."""
    index = index or (slice(None),) * len(weight.shape)
    tensor = shards.read(name, index[::-1] if weight.transposed else index)
    out = np.ascontiguousarray(tensor.T if weight.transposed else tensor)
    return out if dtype is None else out.astype(dtype, copy=False)


def _placed(shards: Tensors, weight: Weight, name: str, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A parameter on its devices. The host holds one part at a time, and reads parts that devices share once."""
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
    """Writes a checkpoint in the same format, atomically; everything except the weights is copied from `source`.

    Files hold up to `shard_bytes` each. The host holds at most one of them at a time.

    Raises:
      UserError: the directory holds anything other than a checkpoint.
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
            file = WEIGHTS if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            out = {}
            for weight in weights:
                tensor = np.asarray(weight_of(variables, weight))
                out[weight.name] = np.ascontiguousarray(tensor.T if weight.transposed else tensor)
                where[weight.name] = file
            save_file(out, str(target / file), metadata={"format": "pt"})
        if len(files) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (target / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        # Sentence encoders have numbered directories of modules. Others, such as work directories, are not copied.
        parts = [source, *(path for path in source.iterdir() if path.is_dir() and path.name[:1].isdigit())]
        for file in (file for part in parts for file in part.iterdir()):
            plain = file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja")
            if plain and "safetensors" not in file.name and file.name != DIGESTS:
                copy = target / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        if isinstance(config, DecoderConfig) and not config.tied:  # also if the head was untied when it was loaded
            values = json.loads((target / "config.json").read_text(encoding="utf-8"))
            settings = json.dumps(values | {"tie_word_embeddings": False}, indent=1)
            (target / "config.json").write_text(settings, encoding="utf-8")
        write_digests(target)


def check_checkpoint(directory: Path) -> None:
    """Raises `UserError` if a file of a checkpoint that `save_params` wrote was changed or lost."""
    if not (directory / DIGESTS).is_file():
        return
    try:
        check_digests(directory)
    except ValueError as error:
        raise UserError(
            f"{directory}: damaged ({error}); restore it, or remove {DIGESTS} if you changed the file yourself"
        ) from error
