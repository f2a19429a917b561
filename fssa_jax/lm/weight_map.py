"""Which tensor of a Hugging Face checkpoint each of our parameters is, for each architecture."""

import dataclasses

import jax

from fssa_jax.models.bert import BertConfig
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Weight:
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


def weight_map(config: DecoderConfig | BertConfig) -> list[Weight]:
    return bert_weights(config) if isinstance(config, BertConfig) else decoder_weights(config)


def decoder_weights(c: DecoderConfig) -> list[Weight]:
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
    out = [Weight(("embedding",), "model.embed_tokens.weight", False, (c.vocabulary, c.width))]
    for ours, theirs, inputs, outputs, bias in linears:
        name = f"model.layers.{{}}.{theirs}"
        out.append(Weight(("layers", ours, "kernel"), f"{name}.weight", True, (n, inputs, outputs)))
        if bias:
            out.append(Weight(("layers", ours, "bias"), f"{name}.bias", False, (n, outputs)))
    out += [Weight(("layers", o, "scale"), f"model.layers.{{}}.{t}.weight", False, (n, w)) for o, t, w in norms]
    out.append(Weight(("norm",), "model.norm.weight", False, (c.width,)))
    if not c.tied:
        out.append(Weight(("head",), "lm_head.weight", True, (c.width, c.vocabulary)))
    return out


def bert_weights(c: BertConfig) -> list[Weight]:
    n, out = c.layers, []
    for ours, theirs, size in (
        ("words", "word_embeddings", c.vocabulary),
        ("positions", "position_embeddings", c.max_length),
        ("types", "token_type_embeddings", c.types),
    ):
        out.append(Weight(("embeddings", ours), f"embeddings.{theirs}.weight", False, (size, c.width)))
    for part in ("scale", "bias"):
        theirs = "weight" if part == "scale" else "bias"
        out.append(Weight(("embeddings", "norm", part), f"embeddings.LayerNorm.{theirs}", False, (c.width,)))
        for ours, name in (("attention_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm")):
            out.append(Weight(("layers", ours, part), f"encoder.layer.{{}}.{name}.{theirs}", False, (n, c.width)))
    for ours, name, inputs, outputs in (
        ("query", "attention.self.query", c.width, c.width),
        ("key", "attention.self.key", c.width, c.width),
        ("value", "attention.self.value", c.width, c.width),
        ("out", "attention.output.dense", c.width, c.width),
        ("up", "intermediate.dense", c.width, c.mlp_width),
        ("down", "output.dense", c.mlp_width, c.width),
    ):
        out.append(Weight(("layers", ours, "kernel"), f"encoder.layer.{{}}.{name}.weight", True, (n, inputs, outputs)))
        out.append(Weight(("layers", ours, "bias"), f"encoder.layer.{{}}.{name}.bias", False, (n, outputs)))
    return out


# Tensors that checkpoints may hold and that nothing here needs.
IGNORED = ("rotary_emb.inv_freq", "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def weight_of(variables: PyTree, leaf: Weight) -> jax.Array:
    value = variables["params"]
    for part in leaf.path:
        value = value[part]
    return value
