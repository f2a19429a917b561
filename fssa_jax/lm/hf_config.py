"""The shape of a model, read from a Hugging Face config.json."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
ENCODERS = ("bert",)


def read_config(directory: Path) -> DecoderConfig | BertConfig:
    """The shape of the model in a directory, from its config.json.

    Raises:
      UserError: no config.json, or an unsupported architecture; the message names the supported ones.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json; give the directory of a Hugging Face checkpoint")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type")
        if kind in (*DECODERS, *ENCODERS):
            _check_sizes(values)
            return _decoder_config(values) if kind in DECODERS else _bert_config(values)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: not the configuration of a model that is supported ({reason})") from error
    raise UserError(f"{path}: model_type {kind!r} is not supported; known are {', '.join(DECODERS + ENCODERS)}")


_MOST = {
    "num_hidden_layers": 2**12,
    "hidden_size": 2**18,
    "intermediate_size": 2**22,
    "vocab_size": 2**24,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**16,
    "max_position_embeddings": 2**28,
    "type_vocab_size": 2**16,
}


def _check_sizes(values: dict[str, Any]) -> None:
    """Raises ValueError for a size that no model has: memory would run out before the weights are found missing."""
    for name, most in _MOST.items():
        size = values.get(name)
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= most:
            raise ValueError(f"{name} is {str(size)[:40]}, not a whole number from 1 to {most}")
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if heads and groups and heads % groups:
        raise ValueError(f"{heads} attention heads cannot share {groups} key and value heads")


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
        vocabulary=v["vocab_size"],
        width=width,
        layers=layers,
        heads=heads,
        groups=v.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_width=v["intermediate_size"],
        max_length=v.get("max_position_embeddings", 2048),
        activation=names[activation],  # type: ignore[arg-type]
        norm_epsilon=v.get("rms_norm_eps", 1e-6),
        norm_offset=1.0 if gemma else 0.0,
        tied=v.get("tie_word_embeddings", gemma),
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        mlp_bias=bool(v.get("mlp_bias", False)),
        qk_norm=kind == "qwen3",
        post_norms=kind == "gemma2",
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        attention_scale=scalar**-0.5 if scalar else None,
        attention_softcap=v.get("attn_logit_softcapping", 50.0) if kind == "gemma2" else None,
        logit_softcap=v.get("final_logit_softcapping", 30.0) if kind == "gemma2" else None,
        windows=_windows(v, layers),
        rope_frequencies=frequencies,
        rope_amplitude=amplitude,
    )


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
    """Frequencies of the rotary embedding and its amplitude factor, from a config.json.

    "default" is θ^(−2i/d); "linear" divides it by a factor; "llama3" divides low frequencies and interpolates in
    between; "yarn" (arXiv 2309.00071) interpolates by the number of turns and scales the amplitude; "dynamic" (NTK)
    equals the default up to max_position_embeddings, the limit of `generate`.
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
        vocabulary=v["vocab_size"],
        width=v["hidden_size"],
        layers=v["num_hidden_layers"],
        heads=v["num_attention_heads"],
        mlp_width=v["intermediate_size"],
        max_length=v["max_position_embeddings"],
        types=v.get("type_vocab_size", 2),
        activation=names[v.get("hidden_act", "gelu")],  # type: ignore[arg-type]
        norm_epsilon=v.get("layer_norm_eps", 1e-12),
    )


def to_hugging_face(config: DecoderConfig) -> dict[str, Any]:
    """The config.json of a decoder made by this package: a Llama with default rotary frequencies, base 10,000."""
    c = config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.groups,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_width,
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": c.norm_epsilon,
        "hidden_act": "silu",
        "rope_theta": 10_000.0,
        "tie_word_embeddings": c.tied,
        "torch_dtype": "float32",
    }
