"""Writes GGUF files as llama.cpp's converter does, so that reading them can be tested."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
NAMES_OF_GEMMA2 = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def in_llama_cpp(name: str, architecture: str) -> str:
    """The name of a tensor of transformers in llama.cpp."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{kind}"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{(NAMES_OF_GEMMA2 if architecture == 'gemma2' else NAMES)[part]}.{kind}"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key as llama.cpp's rotary embedding wants them: those of a pair next to each other."""
    half = values.shape[0] // heads // 2
    order = [h * 2 * half + part * half + i for h in range(heads) for i in range(half) for part in (0, 1)]
    return values[order]


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    *,
    kind: Any = gguf.GGMLQuantizationType.F32,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Writes tensors, named and laid out as in transformers, with a config.json and the tokenizer's metadata.

    Args:
      kind: of the matrices; vectors are F32.
      extra: further metadata of the architecture.
    """
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_key_length(config["head_dim"])
    for name, value in (extra or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{name}", value)
    for name, value in tokenizer.items():
        writer.add_key_value(f"tokenizer.{name}", value, *_types(value))
    for name, values in tensors.items():
        values = np.asarray(values, np.float32)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            values = permuted(values, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        if architecture in ("gemma", "gemma2") and name.endswith("norm.weight"):
            values = values + 1
        as_kind = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(values, as_kind)
        name = in_llama_cpp(name, architecture)
        writer.add_tensor(name, data, raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _types(value: Any) -> tuple[Any, ...]:
    of = gguf.GGUFValueType
    one = {str: of.STRING, bool: of.BOOL, int: of.INT32, float: of.FLOAT32}
    return (of.ARRAY, one[type(value[0])]) if isinstance(value, list) else (one[type(value)],)


def byte_level(fast: Any, pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of a byte-level BPE tokenizer of transformers."""
    import json

    model = json.loads(fast.backend_tokenizer.to_str())["model"]
    tokens = sorted(fast.get_vocab(), key=fast.get_vocab().get)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    special = set(fast.all_special_tokens) | {str(token) for token in fast.added_tokens_decoder.values()}
    out = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": [3 if token in special else 1 for token in tokens],
        "ggml.merges": merges,
        "ggml.eos_token_id": fast.eos_token_id,
        "ggml.padding_token_id": fast.pad_token_id,
    }
    return out | ({"chat_template": fast.chat_template} if fast.chat_template else {})
