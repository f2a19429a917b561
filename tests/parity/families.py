"""Small random models of every family, made and saved by transformers on torch."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("Llama", {"num_key_value_heads": 4}),
    "llama 3 scaled": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama linear, biases": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "smollm": ("Llama", {"tie_word_embeddings": True, "hidden_size": 36, "num_attention_heads": 6}),
    "smollm untied": (
        "Llama",
        {"hidden_size": 36, "num_attention_heads": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    ),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "mistral tied": ("Mistral", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma untied": ("Gemma", {"head_dim": 8, "tie_word_embeddings": False}),
    "gemma 2": ("Gemma2", {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 20}),
    "gemma 2 untied": ("Gemma2", {"head_dim": 8, "sliding_window": 6, "tie_word_embeddings": False}),
}


def make(name: str, directory: Path, **more: Any):
    """(model in torch, its directory): weights large enough that every part of the network matters."""
    family, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **settings, **more}, attn_implementation="eager")
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    model.save_pretrained(directory)
    return model, directory
