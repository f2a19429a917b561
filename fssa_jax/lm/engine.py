"""Decoding as two pure functions: `prefill` reads prompts into a cache, `advance` decodes some tokens for all rows."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from fssa_jax.models.decoder import Cache, Decoder, empty_cache
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.ops.sampling import Sampling, next_tokens
from fssa_jax.types import Leaf, PyTree

_GREEDY = Sampling()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The state of decoding; a pytree.

    Attributes:
      cache: keys and values of all tokens before `token`.
      token: (batch,) the last token of each row, not in the cache yet.
      position: (batch,) its position.
      done: (batch,) rows that are finished. `advance` stops when all are. A caller may finish more rows with
        `dataclasses.replace(state, done=…)`.
      seen: (batch, vocabulary) tokens that occur in a row; None without a repetition penalty.
      keys: (batch,) a PRNG key per row; the token's position is folded in for each token.
    """

    cache: Cache
    token: Leaf
    position: Leaf
    done: Leaf
    seen: Leaf
    keys: Leaf


@dataclasses.dataclass(frozen=True)
class Engine:
    """The two programs of decoding, compiled once per engine and shape. Equal engines share them.

    Attributes:
      model: the decoder.
      sampling: how tokens are chosen.
      slots: positions of the cache; the longest prompt with its new tokens must fit.
      steps: tokens per row that one call of `advance` decodes.
      stop_tokens: ids that end a row.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import Decoder, DecoderConfig
    >>> from fssa_jax.lm.engine import Engine
    >>> model = Decoder(DecoderConfig(vocabulary=50, width=16, layers=2, heads=4, groups=2, head_dim=4, mlp_width=32))
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 3), int))
    >>> engine = Engine(model, slots=16, steps=4)
    >>> prompts = jnp.array([[7, 8, 9], [5, 0, 0]])
    >>> state = engine.prefill(variables, prompts, jnp.array([3, 1]), jax.random.split(jax.random.key(0), 2))
    >>> state.token.shape  # the first new token of each row
    (2,)
    >>> state, new = engine.advance(variables, state)
    >>> new.shape, state.position.tolist()
    ((2, 4), [7, 5])
    """

    model: Decoder
    sampling: Sampling = _GREEDY
    slots: int = 2048
    steps: int = 16
    stop_tokens: tuple[int, ...] = ()

    @partial(jax.jit, static_argnums=0)
    def prefill(
        self,
        variables: PyTree,
        tokens: Int[Array, "batch t"],
        lengths: Int[Array, " batch"],
        keys: Key[Array, " batch"],
        adapters: AdapterTree | None = None,
    ) -> State:
        """Reads prompts and chooses the first new token of each row, `state.token`.

        Args:
          variables: of the decoder.
          tokens: ids of the prompts, padded on the right; t ≤ slots.
          lengths: of the prompts, at least 1 each.
          keys: a PRNG key per row.
          adapters: one row per sequence; None for none.
        """
        batch, width = tokens.shape
        at = jnp.broadcast_to(jnp.arange(width)[None], tokens.shape)
        cache = empty_cache(self.model.config, batch, self.slots, self.model.dtype)
        hidden, cache = self._hidden(variables, tokens, None, cache, adapters)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        seen = None
        if self.sampling.repetition_penalty != 1:
            row = jnp.broadcast_to(jnp.arange(batch)[:, None], tokens.shape)
            seen = jnp.zeros((batch, self.model.config.vocabulary), bool).at[row, tokens].max(at < lengths[:, None])
        token, seen = self._choose(variables, last, keys, seen, lengths)
        return State(cache, token, lengths, jnp.zeros(batch, bool), seen, keys)

    @partial(jax.jit, static_argnums=0)
    def advance(
        self, variables: PyTree, state: State, adapters: AdapterTree | None = None
    ) -> tuple[State, Int[Array, "batch steps"]]:
        """Decodes `steps` tokens per row, or fewer if all rows are done earlier.

        Args:
          variables, adapters: as in `prefill`.
          state: from `prefill` or from the previous call.

        Returns:
          The next state, and the new tokens. Tokens after a stop token are meaningless.
        """
        ends = jnp.asarray(self.stop_tokens, jnp.int32)
        new = jnp.zeros((state.token.shape[0], self.steps), jnp.int32)

        def more(carry: tuple[Array, State, Array]) -> Array:
            i, s, _ = carry
            return (i < self.steps) & ~s.done.all()

        def step(carry: tuple[Array, State, Array]) -> tuple[Array, State, Array]:
            i, s, new = carry
            # A finished row keeps its position, which must not run past the end of the cache.
            at = jnp.minimum(s.position, self.slots - 1)[:, None]
            hidden, cache = self._hidden(variables, s.token[:, None], at, s.cache, adapters)
            token, seen = self._choose(variables, hidden[:, 0], s.keys, s.seen, s.position + 1)
            done = s.done | (token[:, None] == ends[None]).any(-1)
            return i + 1, State(cache, token, s.position + 1, done, seen, s.keys), new.at[:, i].set(token)

        _, state, new = jax.lax.while_loop(more, step, (jnp.zeros((), jnp.int32), state, new))
        return state, new

    def _hidden(
        self, variables: PyTree, tokens: Array, at: Array | None, cache: Cache, adapters: AdapterTree | None
    ) -> tuple[Float[Array, "batch t d"], Cache]:
        out: Any = self.model.apply(variables, tokens, adapters, positions=at, cache=cache, method="hidden")
        return out

    def _choose(
        self,
        variables: PyTree,
        hidden: Float[Array, "batch d"],
        keys: Key[Array, " batch"],
        seen: Bool[Array, "batch vocabulary"] | None,
        position: Int[Array, " batch"],
    ) -> tuple[Int[Array, " batch"], Bool[Array, "batch vocabulary"] | None]:
        """The next token of each row, and the updated `seen`."""
        logits: Any = self.model.apply(variables, hidden, method="logits")
        # The key of a token depends only on its row's key and its position, not on how decoding is cut into calls.
        token = next_tokens(logits, jax.vmap(jax.random.fold_in)(keys, position), seen, self.sampling)
        if seen is not None:
            seen = seen.at[jnp.arange(len(token)), token].set(True)
        return token, seen
