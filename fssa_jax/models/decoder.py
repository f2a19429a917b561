"""One decoder for common language models: Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, SmolLM."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fssa_jax.models.layers import unstack_layers
from fssa_jax.ops.adapters import PLACES, AdapterTree, adapter_layers, apply_adapter, check_adapters
from fssa_jax.ops.attention import Implementation, attention
from fssa_jax.types import PyTree

Remat = Literal["none", "full", "dots"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder and the options of its family. `hf_config.read_config` reads it from a config.json.

    Attributes:
      vocabulary, width, layers, heads, groups, head_dim, mlp_width: sizes; `groups` is the number of key/value heads.
      max_length: number of positions of the model.
      activation: of the gated MLP.
      norm_epsilon, norm_offset: RMSNorm(x) = x / rms(x) · (offset + scale); Gemma's offset is 1.
      tied: the output layer is the embedding.
      qkv_bias, out_bias, mlp_bias: which linear layers have a bias.
      qk_norm: RMSNorm of every query and key head (Qwen3).
      post_norms: norms after attention and MLP as well (Gemma 2).
      embedding_scale: of the embedded tokens (Gemma: √width).
      attention_scale: 1/√head_dim where None.
      attention_softcap, logit_softcap: softcaps of Gemma 2; None for none.
      windows: attention window per layer, None for all keys; () if no layer has a window.
      rope: frequencies of the rotary embedding, and its amplitude factor (YaRN).

    >>> from fssa_jax import DecoderConfig
    >>> DecoderConfig(vocabulary=50, width=16, layers=2, heads=4, groups=2, head_dim=4, mlp_width=32).tied
    False
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    mlp_width: int
    max_length: int = 2048
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] = ()
    rope_frequencies: tuple[float, ...] = ()
    rope_amplitude: float = 1.0

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Frequencies of the rotary embedding, (head_dim/2,); θ = 10,000 if none are given."""
        half = self.head_dim // 2
        return self.rope_frequencies or tuple(10_000 ** (-i / half) for i in range(half))


def place_sizes(config: DecoderConfig, places: tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
    """(place, inputs, outputs) of the given places of a decoder: projections and the residual stream.

    >>> from fssa_jax import DecoderConfig, place_sizes
    >>> config = DecoderConfig(vocabulary=50, width=16, layers=2, heads=4, groups=2, head_dim=4, mlp_width=32)
    >>> place_sizes(config, ("value", "residual"))
    (('value', 16, 8), ('residual', 16, 16))
    """
    c = config
    q, kv = c.heads * c.head_dim, c.groups * c.head_dim
    sizes = {
        "query": (c.width, q),
        "key": (c.width, kv),
        "value": (c.width, kv),
        "out": (q, c.width),
        "gate": (c.width, c.mlp_width),
        "up": (c.width, c.mlp_width),
        "down": (c.mlp_width, c.width),
        "residual": (c.width, c.width),
    }
    return tuple((place, *sizes[place]) for place in places)


class Cache(NamedTuple):
    """Keys and values: an array (batch, length, groups, head_dim) per layer; slot j holds position j."""

    key: tuple[Array, ...]
    value: tuple[Array, ...]


def empty_cache(config: DecoderConfig, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """A cache of static shape for sequences of up to `length` tokens."""
    shape = (batch, length, config.groups, config.head_dim)
    return Cache(*(tuple(jnp.zeros(shape, dtype) for _ in range(config.layers)) for _ in range(2)))


def rms_norm(x: Float[Array, "*batch d"], scale: Float[Array, " d"], epsilon: float, offset: float = 0.0) -> Array:
    """x / √(mean x² + ε) · (offset + scale), computed in float32, returned in the type of x (arXiv 1910.07467)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    lead = (1,) * (x.ndim - 1)
    if offset:  # Gemma scales in float32; the other families scale in the type of x
        return (y * (offset + scale.astype(jnp.float32)).reshape(*lead, -1)).astype(x.dtype)
    return y.astype(x.dtype) * scale.astype(x.dtype).reshape(*lead, -1)


def rotate(x: Float[Array, "batch t heads d"], cos: Array, sin: Array) -> Float[Array, "batch t heads d"]:
    """The rotary embedding on halves: (x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)  (arXiv 2104.09864)."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None].astype(x.dtype), sin[:, :, None].astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


_FAR = 2**30  # a window that masks nothing
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def block(
    layer: PyTree,
    x: Float[Array, "batch t d"],
    *,
    config: DecoderConfig,
    angles: tuple[Array, Array],
    positions: Int[Array, "batch t"] | None,
    segments: Int[Array, "batch t"] | None,
    window: int | Int[Array, ""] | None,
    cache: tuple[Array, Array] | None,
    adapters: AdapterTree | None,
    implementation: Implementation,
) -> tuple[Float[Array, "batch t d"], tuple[Array, Array] | None]:
    """One transformer block, with the parameters of one layer."""
    c = config
    batch, t, _ = x.shape

    def norm(name: str, y: Array) -> Array:
        return rms_norm(y, layer[name]["scale"], c.norm_epsilon, c.norm_offset)

    def linear(name: str, y: Array) -> Array:
        # All tokens in one axis: XLA's CPU backend is slow at the gradient of a contraction over two.
        kernel = layer[name]["kernel"].astype(y.dtype)
        out = (y.reshape(-1, y.shape[-1]) @ kernel).reshape(*y.shape[:-1], -1)
        if "bias" in layer[name]:
            out = out + layer[name]["bias"].astype(y.dtype)[None, None]
        return out if adapters is None else apply_adapter(adapters.get(name), y, out)

    y = norm("attention_norm", x)
    query = linear("query", y).reshape(batch, t, c.heads, c.head_dim)
    key = linear("key", y).reshape(batch, t, c.groups, c.head_dim)
    value = linear("value", y).reshape(batch, t, c.groups, c.head_dim)
    if c.qk_norm:
        query, key = norm("query_norm", query), norm("key_norm", key)
    query, key = rotate(query, *angles), rotate(key, *angles)
    where: dict[str, Any] = {"positions": positions, "segments": segments}
    if cache is not None and positions is None:
        # The first tokens of the sequences attend to one another alone, not to the empty rest of the cache.
        first = partial(jax.lax.dynamic_update_slice_in_dim, start_index=0, axis=1)
        cache = first(cache[0], key.astype(cache[0].dtype)), first(cache[1], value.astype(cache[1].dtype))
    elif cache is not None:
        assert positions is not None
        write = jax.vmap(lambda slots, new, at: jax.lax.dynamic_update_slice_in_dim(slots, new, at, 0))
        old_key, old_value = cache
        cache = (
            write(old_key, key.astype(old_key.dtype), positions[:, 0]),
            write(old_value, value.astype(old_value.dtype), positions[:, 0]),
        )
        key, value = cache[0].astype(x.dtype), cache[1].astype(x.dtype)
        if t == 1 and window is None:  # what a single query may see is a length, which cuDNN takes
            where = {"lengths": positions[:, 0] + 1, "causal": False}
    if ("lengths" not in where and positions is not None) or (implementation == "splash" and cache is not None):
        implementation = "xla"
    mixed = attention(
        query,
        key,
        value,
        **where,
        window=window,
        scale=c.attention_scale,
        softcap=c.attention_softcap,
        implementation=implementation,
    )
    out = linear("out", mixed.reshape(batch, t, c.heads * c.head_dim))
    x = x + (norm("attention_post_norm", out) if c.post_norms else out)
    y = norm("mlp_norm", x)
    out = linear("down", _ACTIVATIONS[c.activation](linear("gate", y)) * linear("up", y))
    x = x + (norm("mlp_post_norm", out) if c.post_norms else out)
    if adapters is not None:
        x = apply_adapter(adapters.get("residual"), x, x)
    return x, cache


_Block = Callable[..., tuple[Array, tuple[Array, Array] | None]]


class Decoder(nn.Module):
    """A causal language model; log p(token | tokens before) is log_softmax of `logits`.

    The parameters hold a list of layers, and the loop over them is unrolled: training and decoding use the weights in
    place. A scan over stacked layers compiles faster, but copies the weights of a layer before use, which doubles the
    time of a decoding step on a CPU.

    Attributes:
      config: the shape.
      dtype: of the computation; norms, softmax and rotary angles are always float32.
      remat: what the backward pass recomputes: "none", whole layers ("full"), or everything but the matrix products
        ("dots"). With "full" and "dots" the layers are scanned, in a stacked copy that lives as long as the call.
      implementation: of attention. XLA's is used where another supports no such queries: at given positions, except
        for a single token without a window, and with windows that differ while layers are scanned.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(vocabulary=50, width=16, layers=2, heads=4, groups=2, head_dim=4, mlp_width=32))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 3), int))
    >>> model.apply(variables, jnp.ones((2, 5), int)).shape
    (2, 5, 50)
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    remat: Remat = "none"
    implementation: Implementation = "auto"

    def setup(self):
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocabulary, c.width))
        self.layers = self.param("layers", _init_layers, c)
        self.norm = self.param("norm", nn.initializers.constant(1.0 - c.norm_offset), (c.width,))
        if not c.tied:
            self.head = self.param("head", init, (c.width, c.vocabulary))

    def hidden(
        self,
        tokens: Int[Array, "batch t"],
        adapters: AdapterTree | None = None,
        *,
        positions: Int[Array, "batch t"] | None = None,
        segments: Int[Array, "batch t"] | None = None,
        cache: Cache | None = None,
        until: int | None = None,
        collect: bool = False,
        start: int = 0,
        states: Float[Array, "batch t d"] | None = None,
    ) -> tuple[Float[Array, "*layers batch t d"], Cache | None]:
        """Hidden states of tokens, padded on the right.

        Args:
          tokens: token ids.
          adapters: one row per sequence; see `adapters.py`. None has no cost. Adapters of fewer layers than the model
            are of its last layers.
          positions: of the tokens, consecutive within a row; 0, 1, … by default. With a cache the default says that
            these are the first tokens of the sequences: nothing that the cache holds is read.
          segments: of the tokens, where several sequences with a common beginning share a row; see `attention`. Needs
            `positions`, and no cache. Positions are consecutive within the beginning, and go on in every segment.
          cache: keys and values of earlier tokens; new ones are written to their positions.
          until: number of layers to run, without the final norm; by default all, with it.
          collect: return the states before the first and after every layer, (layers + 1, batch, t, d), without norm.
          start, states: the first `start` layers are not run; `states` are what they return (`until=start`). Without a
            cache.

        Returns:
          The states and the cache (None without one).

        Raises:
          ValueError: adapters that do not fit the shape of the model, or that adapt a layer which is not run.
        """
        c = self.config
        if adapters is not None:
            check_adapters(adapters, place_sizes(c, PLACES), c.layers)
            if c.layers - adapter_layers(adapters) < start:
                raise ValueError(f"adapters of the last {adapter_layers(adapters)} layers: {start} layers are not run")
        if (start > 0) != (states is not None) or (start and cache is not None) or start > (until or c.layers):
            raise ValueError(f"start={start} needs the states after these layers, no cache, and layers left to run")
        if states is None:
            x = self.embedding[tokens].astype(self.dtype)
            if c.embedding_scale != 1.0:
                x = x * jnp.asarray(c.embedding_scale, self.dtype)
        else:
            x = states.astype(self.dtype)
        if segments is not None and (positions is None or cache is not None):
            raise ValueError("segments need the positions of their tokens, and no cache")
        at = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        angle = at[..., None].astype(jnp.float32) * jnp.asarray(c.frequencies, jnp.float32)[None, None]
        angles = (jnp.cos(angle) * c.rope_amplitude, jnp.sin(angle) * c.rope_amplitude)
        run = partial(block, config=c, angles=angles, positions=positions, segments=segments)
        count = c.layers if until is None else until
        if self.remat == "none" or cache is not None or collect:
            every, cache = self._unrolled(run, x, adapters, cache, start, count)
            if collect:
                return jnp.stack(every), cache
            x = every[-1]
        else:
            plain = count if adapters is None else max(min(c.layers - adapter_layers(adapters), count), start)
            x = self._scanned(run, x, None, start, plain)
            x = self._scanned(run, x, adapters, plain, count)
        if until is None:
            x = rms_norm(x, self.norm, c.norm_epsilon, c.norm_offset)
        return x, cache

    def _unrolled(
        self, run: _Block, x: Array, adapters: AdapterTree | None, cache: Cache | None, start: int, end: int
    ) -> tuple[list[Array], Cache | None]:
        """The states before the first and after each of the layers start … end − 1; the weights are used in place."""
        total = self.config.layers
        windows = self.config.windows or (None,) * total
        kept = [None] * total if cache is None else list(zip(*cache, strict=True))
        adapted = 0 if adapters is None else adapter_layers(adapters)
        each = [*[None] * (total - adapted), *unstack_layers(adapters, adapted)]
        states, new = [x], []
        these = slice(start, end)
        for layer, window, mine, adapter in zip(
            self.layers[these], windows[these], kept[these], each[these], strict=True
        ):
            x, mine = run(layer, x, window=window, cache=mine, adapters=adapter, implementation=self.implementation)
            states.append(x)
            new.append(mine)
        return states, None if cache is None else Cache(*zip(*new, strict=True))

    def _scanned(self, run: _Block, x: Array, adapters: AdapterTree | None, start: int, end: int) -> Array:
        """The state after the layers start … end − 1, each recomputed in the backward pass.

        Unrolled, 30 layers would take ten times as long to compile, and XLA's CPU backend would recompute nothing.
        """
        if start == end:
            return x
        windows = (self.config.windows or (None,) * self.config.layers)[start:end]
        same = len(set(windows)) == 1
        implementation = self.implementation if same else "xla"  # only "xla" takes a traced window
        limits = None if same else jnp.asarray([_FAR if w is None else w for w in windows])
        layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.layers[start:end])

        def step(x: Array, scanned: tuple[PyTree, Array | None, AdapterTree | None]) -> tuple[Array, None]:
            layer, limit, adapter = scanned
            window = windows[0] if same else limit
            x, _ = run(layer, x, window=window, cache=None, adapters=adapter, implementation=implementation)
            return x, None

        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
        mine = jax.tree.map(lambda leaf: leaf[: end - start], adapters)
        # The forward and the backward loop are apart: nothing of the one can be merged into the other.
        remade = jax.checkpoint(step, policy=dots, prevent_cse=False)
        return jax.lax.scan(remade, x, (layers, limits, mine))[0]

    def output_kernel(self) -> Float[Array, "d vocabulary"]:
        """The output layer; the transposed embedding if they are tied."""
        return self.embedding.T if self.config.tied else self.head

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch vocabulary"]:
        """Float32 logits of normed hidden states."""
        kernel = self.output_kernel().astype(hidden.dtype)
        out = jax.lax.dot_general(
            hidden, kernel, (((hidden.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        cap = self.config.logit_softcap
        return out if cap is None else cap * jnp.tanh(out / cap)

    def __call__(
        self, tokens: Int[Array, "batch t"], adapters: AdapterTree | None = None
    ) -> Float[Array, "batch t vocabulary"]:
        """Logits of all tokens. For log-probabilities of long sequences see `logprobs.py`."""
        return self.logits(self.hidden(tokens, adapters)[0])


def _init_layers(key: Array, config: DecoderConfig) -> list[PyTree]:
    """Parameters of each layer."""
    c = config
    q, kv = c.heads * c.head_dim, c.groups * c.head_dim
    shapes = {
        "query": (c.width, q, c.qkv_bias),
        "key": (c.width, kv, c.qkv_bias),
        "value": (c.width, kv, c.qkv_bias),
        "out": (q, c.width, c.out_bias),
        "gate": (c.width, c.mlp_width, c.mlp_bias),
        "up": (c.width, c.mlp_width, c.mlp_bias),
        "down": (c.mlp_width, c.width, c.mlp_bias),
    }
    layers: dict[str, dict[str, Array]] = {}
    for (name, (inputs, outputs, bias)), k in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        layers[name] = {"kernel": 0.02 * jax.random.normal(k, (c.layers, inputs, outputs))}
        if bias:
            layers[name]["bias"] = jnp.zeros((c.layers, outputs))
    norms = {"attention_norm": c.width, "mlp_norm": c.width}
    if c.post_norms:
        norms |= {"attention_post_norm": c.width, "mlp_post_norm": c.width}
    if c.qk_norm:
        norms |= {"query_norm": c.head_dim, "key_norm": c.head_dim}
    for name, width in norms.items():
        layers[name] = {"scale": jnp.full((c.layers, width), 1.0 - c.norm_offset)}
    return unstack_layers(layers, c.layers)
