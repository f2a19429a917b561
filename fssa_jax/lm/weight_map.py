"""Maps each parameter to its tensor in a Hugging Face checkpoint, for each architecture."""

import dataclasses

import jax

from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter and its tensor in the file.

    Attributes:
      path: in the parameter tree; layers are numbers in a list.
      name: of the tensor in the file.
      transposed: whether the tensor is the transposed parameter.
      shape: of the parameter.
    """

    path: tuple[str | int, ...]
    name: str
    transposed: bool
    shape: tuple[int, ...]


def weight_map(config: DecoderConfig | BertConfig) -> list[Weight]:
    """All parameters of a model, and the tensors that hold them.

    >>> from fssa_jax import DecoderConfig
    >>> from fssa_jax.lm.weight_map import weight_map
    >>> config = DecoderConfig(vocabulary=50, width=16, layers=2, heads=4, groups=2, head_dim=4, mlp_width=32)
    >>> key = weight_map(config)[2]
    >>> key.path, key.name, key.transposed, key.shape
    (('layers', 0, 'key', 'kernel'), 'model.layers.0.self_attn.k_proj.weight', True, (16, 8))
    """
    return _bert_weights(config) if isinstance(config, BertConfig) else decoder_weights(config)


def decoder_weights(c: DecoderConfig) -> list[Weight]:
    """The weights of Llama-like decoders."""
    q, kv = c.heads * c.head_dim, c.groups * c.head_dim
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
    out = [Weight(("embedding",), "model.embed_tokens.weight", False, (c.vocabulary, c.width))]
    for i in range(c.layers):
        for ours, theirs, inputs, outputs, bias in linears:
            name = f"model.layers.{i}.{theirs}"
            out.append(Weight(("layers", i, ours, "kernel"), f"{name}.weight", True, (inputs, outputs)))
            if bias:
                out.append(Weight(("layers", i, ours, "bias"), f"{name}.bias", False, (outputs,)))
        out += [Weight(("layers", i, o, "scale"), f"model.layers.{i}.{t}.weight", False, (n,)) for o, t, n in norms]
    out.append(Weight(("norm",), "model.norm.weight", False, (c.width,)))
    if not c.tied:
        out.append(Weight(("head",), "lm_head.weight", True, (c.width, c.vocabulary)))
    return out


def _bert_weights(c: BertConfig) -> list[Weight]:
    out = []
    for ours, theirs, size in (
        ("words", "word_embeddings", c.vocabulary),
        ("positions", "position_embeddings", c.max_length),
        ("types", "token_type_embeddings", c.types),
    ):
        out.append(Weight(("embeddings", ours), f"embeddings.{theirs}.weight", False, (size, c.width)))
    parts = (("scale", "weight"), ("bias", "bias"))
    for ours, theirs in parts:
        out.append(Weight(("embeddings", "norm", ours), f"embeddings.LayerNorm.{theirs}", False, (c.width,)))
    for i in range(c.layers):
        for norm, theirs in (("attention_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm")):
            for ours, part in parts:
                out.append(Weight(("layers", i, norm, ours), f"encoder.layer.{i}.{theirs}.{part}", False, (c.width,)))
        for linear, theirs, inputs, outputs in (
            ("query", "attention.self.query", c.width, c.width),
            ("key", "attention.self.key", c.width, c.width),
            ("value", "attention.self.value", c.width, c.width),
            ("out", "attention.output.dense", c.width, c.width),
            ("up", "intermediate.dense", c.width, c.mlp_width),
            ("down", "output.dense", c.mlp_width, c.width),
        ):
            name = f"encoder.layer.{i}.{theirs}"
            out.append(Weight(("layers", i, linear, "kernel"), f"{name}.weight", True, (inputs, outputs)))
            out.append(Weight(("layers", i, linear, "bias"), f"{name}.bias", False, (outputs,)))
    return out


# Tensors that checkpoints may hold and that are not needed.
IGNORED = ("rotary_emb.inv_freq", "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def weight_of(variables: PyTree, weight: Weight) -> jax.Array:
    """Looks up a parameter in a model's variables."""
    value = variables["params"]
    for part in weight.path:
        value = value[part]
    return value
