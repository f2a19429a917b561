"""Generation: ragged prompts and a different adapter for every row, compiled once for each bucket of lengths."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.models.decoder import Cache, Decoder, empty_cache, unstacked
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.ops.padding import bucket
from fssa_jax.ops.sampling import Sampling, next_tokens
from fssa_jax.types import PyTree
from fssa_jax.watchdog import finished

_GREEDY = Sampling()


@dataclasses.dataclass
class Generated:
    """New tokens of each row, without the stop token; why each ended, "stop" or "length"; and by which stop token."""

    tokens: list[list[int]]
    finish: list[str]
    stopped_by: list[int | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What decoding carries from token to token."""

    cache: Any
    token: Any  # (batch,) the last one, not in the cache yet
    position: Any  # (batch,) where it belongs
    done: Any
    seen: Any  # (batch, vocabulary), or None without a repetition penalty
    keys: Any


def generate(
    model: Decoder,
    variables: PyTree,
    prompts: Sequence[Sequence[int]],
    max_new: int,
    *,
    adapters: AdapterTree | None = None,
    sampling: Sampling = _GREEDY,
    seeds: Sequence[int] | None = None,
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    on_tokens: Callable[[int, list[int]], None] | None = None,
    tokens_per_call: int = 16,
) -> Generated:
    """Continues each prompt by up to `max_new` tokens.

    Prompt and cache are padded to buckets; prefill and decoding are compiled once for each. A row's tokens depend
    on its prompt, its adapter and its seed alone, not on the other rows.

    Args:
      model, variables: the decoder; parameters as loaded. Give them `unstacked` to make many calls: each call
        would copy them into that form.
      prompts: token ids, at least one each.
      adapters: with one row for each prompt; None for none.
      seeds: of the rows; 0, 1, … by default. Greedy decoding needs none.
      stop_tokens: ids that end a row; they are not returned.
      stop_strings: texts that end a row; the tokens up to the one that completes it are returned. Needs `decode`.
      decode: tokens → text.
      on_tokens: called with (row, its new tokens) after every call of the device, for streaming.
      tokens_per_call: decoding steps in one call of the device.

    Raises:
      UserError: an empty prompt, or one that does not fit into the model's positions with `max_new`.
    """
    if not prompts or max_new < 1:
        return Generated([[] for _ in prompts], ["length"] * len(prompts), [None] * len(prompts))
    if seeds is not None and (len(seeds) != len(prompts) or min(seeds) < 0):
        raise ValueError(f"seeds must be {len(prompts)} numbers from 0 up, one a prompt; got {list(seeds)}")
    unknown = sorted({t for prompt in prompts for t in prompt if not 0 <= t < model.config.vocabulary})
    if unknown:
        raise UserError(f"prompt token {unknown[0]} is not in the model's vocabulary of {model.config.vocabulary}")
    lengths = np.array([len(p) for p in prompts])
    limit = model.config.max_length
    for row, length in enumerate(lengths):
        if length == 0:
            raise UserError(f"prompt {row}: empty; give at least one token, such as the tokenizer's first")
        if length + max_new > limit:
            raise UserError(
                f"prompt {row}: {length} tokens and {max_new} new ones do not fit into the {limit} positions of the "
                "model; shorten it or lower the number of new tokens"
            )
    if stop_strings and decode is None:
        raise ValueError("stop_strings need decode")
    width = min(bucket(int(lengths.max())), limit)
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    slots = min(bucket(int(lengths.max()) + max_new), limit)
    seeds = range(len(prompts)) if seeds is None else seeds
    keys = jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))
    stops = set(stop_tokens)
    # A token is a byte of text at least: what completes a stop string stands among the last so many.
    tail = max((len(s.encode()) for s in stop_strings), default=0) + 8
    compiled: Any = _programs  # a module is as hashable as its fields
    prefill, advance = compiled(model, sampling, slots, tokens_per_call, tuple(stop_tokens))
    loose = variables if isinstance(variables["params"]["layers"], list | tuple) else jax.jit(unstacked)(variables)
    state, first = prefill(loose, jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), keys, adapters)

    out: list[list[int]] = [[] for _ in prompts]
    finish = ["length"] * len(prompts)
    stopped_by: list[int | None] = [None] * len(prompts)
    done = np.zeros(len(prompts), bool)

    def take(new: np.ndarray) -> None:
        for row in np.flatnonzero(~done):
            fresh = []
            for token in new[row].tolist():
                if token in stops:
                    done[row], finish[row], stopped_by[row] = True, "stop", token
                    break
                fresh.append(token)
                out[row].append(token)
                if stop_strings and decode is not None and _ends_in(decode(out[row][-tail:]), stop_strings):
                    done[row], finish[row] = True, "stop"
                    break
                if len(out[row]) == max_new:
                    done[row] = True
                    break
            if fresh and on_tokens is not None:
                on_tokens(int(row), fresh)

    take(np.asarray(first)[:, None])
    while not done.all():
        state, new = advance(loose, dataclasses.replace(state, done=jnp.asarray(done)), adapters)
        take(np.asarray(new))
        finished()
    return Generated(out, finish, stopped_by)


def _ends_in(text: str, strings: Sequence[str]) -> bool:
    return any(s in text for s in strings)


@lru_cache(maxsize=64)
def _programs(model: Decoder, sampling: Sampling, slots: int, steps: int, stops: tuple[int, ...]):
    """(prefill, advance), compiled for each shape that they meet."""
    vocabulary = model.config.vocabulary
    penalised = sampling.repetition_penalty != 1

    def choose(logits, state_keys, seen, position):
        # The key of a token follows from its row's seed and its position, however decoding is cut into calls.
        keys = jax.vmap(jax.random.fold_in)(state_keys, position)
        token = next_tokens(logits, keys, seen, sampling)
        if seen is not None:
            seen = seen.at[jnp.arange(len(token)), token].set(True)
        return token, seen

    @jax.jit
    def prefill(variables, tokens, lengths, keys, adapters):
        batch, width = tokens.shape
        at = jnp.broadcast_to(jnp.arange(width)[None], tokens.shape)
        cache = empty_cache(model.config, batch, slots, model.dtype, stacked=False)
        hidden, cache = model.apply(variables, tokens, adapters, positions=at, cache=cache, method="hidden")
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        logits = model.apply(variables, last, method="logits")
        seen = None
        if penalised:
            row = jnp.broadcast_to(jnp.arange(batch)[:, None], tokens.shape)
            seen = jnp.zeros((batch, vocabulary), bool).at[row, tokens].max(at < lengths[:, None])
        token, seen = choose(logits, keys, seen, lengths)
        return _State(cache, token, lengths, jnp.zeros(batch, bool), seen, keys), token

    @jax.jit
    def advance(variables, state: _State, adapters):
        ends = jnp.asarray(stops, jnp.int32)
        batch = state.token.shape[0]

        def more(carry):
            i, state, _ = carry
            return (i < steps) & ~state.done.all()

        def step(carry):
            i, s, new = carry
            # A finished row stays where it is: its place in the cache must not run over the end.
            at = jnp.minimum(s.position, slots - 1)[:, None]
            hidden, cache = model.apply(
                variables, s.token[:, None], adapters, positions=at, cache=Cache(*s.cache), method="hidden"
            )
            logits = model.apply(variables, hidden[:, 0], method="logits")
            token, seen = choose(logits, s.keys, s.seen, s.position + 1)
            done = s.done | (token[:, None] == ends[None]).any(-1)
            new = new.at[:, i].set(token)
            return i + 1, _State(cache, token, s.position + 1, done, seen, s.keys), new

        start = (jnp.zeros((), jnp.int32), state, jnp.zeros((batch, steps), jnp.int32))
        _, state, new = jax.lax.while_loop(more, step, start)
        return state, new

    return prefill, advance
