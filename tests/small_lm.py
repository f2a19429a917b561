"""Language models and a tokenizer small enough for tests; nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fssa_jax.lm.safetensors import save_params
from fssa_jax.models.bert import BertConfig, BertEncoder
from fssa_jax.models.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    vocabulary=97, width=32, layers=3, heads=4, groups=2, head_dim=8, mlp_width=48, max_length=128, tied=True
)
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


DATED = "{{ strftime_now('%d %b %Y') }} " + TEMPLATE
"""A template that asks for today's date."""


def decoder(**changes: Any):
    """(model, variables) with weights large enough to matter."""
    import dataclasses

    model = Decoder(dataclasses.replace(CONFIG, **changes))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2), int))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, noise)


def tokenizer(directory: Path, template: str | None = TEMPLATE, vocabulary: int = 90):
    """Trains and saves a byte-level BPE tokenizer with the given chat template."""
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|start|>", "<|end|>"]
    text = ["how do I bake bread? hey, just mix it. user assistant"] * 3
    raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special))
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(directory)
    return fast


def save_bert(directory: Path, vocabulary: int = 97, seed: int = 0) -> BertConfig:
    """A random sentence encoder with its tokenizer."""
    config = BertConfig(vocabulary=vocabulary, width=16, layers=2, heads=2, mlp_width=24, max_length=32)
    variables = BertEncoder(config).init(jax.random.key(seed), jnp.zeros((1, 2), int), jnp.array([2]))
    source = directory.with_name(f"{directory.name}.source")
    source.mkdir(parents=True)
    values = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    (source / "config.json").write_text(json.dumps(values))
    tokenizer(source, template=None)
    save_params(directory, variables, config, source)
    return config


def save_decoder(directory: Path, template: str = TEMPLATE, **changes: Any):
    """A random Llama of our own making on disk, with its tokenizer; (model, variables)."""
    model, variables = decoder(**changes)
    c = model.config
    source = directory.with_name(f"{directory.name}.source")
    source.mkdir(parents=True)
    values = {
        "model_type": "llama",
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.groups,
        "head_dim": c.head_dim,
        "intermediate_size": c.mlp_width,
        "max_position_embeddings": c.max_length,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": c.tied,
    }
    (source / "config.json").write_text(json.dumps(values))
    tokenizer(source, template)
    save_params(directory, variables, c, source)
    return model, variables


def ragged(seed: int, lengths: list[int], vocabulary: int = 97) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, n).tolist() for n in lengths]
