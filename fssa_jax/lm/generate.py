"""Generation for prompts of any length, padded to buckets, with an adapter per row, until each row stops."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.lm.engine import Engine
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.ops.padding import bucket
from fssa_jax.ops.sampling import Sampling
from fssa_jax.progress import finished
from fssa_jax.types import PyTree

_GREEDY = Sampling()


@dataclasses.dataclass
class Generated:
    """New tokens per row, without the stop token; why each row ended, "stop" or "length"; and its stop token."""

    tokens: list[list[int]]
    finish: list[str]
    stopped_by: list[int | None]


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
    devices: Sequence[Any] = (),
) -> Generated:
    """Continues each prompt by up to `max_new` tokens.

    Prompt and cache are padded to buckets; prefill and decoding are compiled once per bucket. A row's tokens depend
    only on its prompt, its adapter and its seed, not on the other rows.

    Args:
      model, variables: the decoder and its parameters.
      prompts: token ids, at least one each.
      adapters: one row per prompt; None for none.
      seeds: one per row; 0, 1, … by default. Greedy decoding needs none.
      stop_tokens: ids that end a row; they are not returned.
      stop_strings: texts that end a row; the token that completes one is still returned. Needs `decode`.
      decode: tokens → text.
      on_tokens: called with (row, its new tokens) after every call of the device, for streaming.
      tokens_per_call: decoding steps in one call of the device.
      devices: share the rows, whose number must be a multiple of theirs; the parameters should be on all of them.

    Raises:
      UserError: an empty prompt, or one that does not fit into the model's positions together with `max_new` tokens.
    """
    if not prompts or max_new < 1:
        return Generated([[] for _ in prompts], ["length"] * len(prompts), [None] * len(prompts))
    if seeds is not None and (len(seeds) != len(prompts) or min(seeds) < 0):
        raise ValueError(f"seeds must be {len(prompts)} numbers from 0 up, one per prompt; got {list(seeds)}")
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
    # A token is at least one byte of text, so the last tokens up to this number hold the whole stop string.
    tail = max((len(s.encode()) for s in stop_strings), default=0) + 8
    engine = Engine(model, sampling, slots, tokens_per_call, tuple(stop_tokens))
    inputs = jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), keys
    if len(devices) > 1:
        mesh = jax.sharding.Mesh(np.asarray(devices), ("rows",))
        inputs = jax.device_put(inputs, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    state = engine.prefill(variables, *inputs, adapters)

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

    take(np.asarray(state.token)[:, None])
    while not done.all():
        state, new = engine.advance(variables, dataclasses.replace(state, done=jnp.asarray(done)), adapters)
        take(np.asarray(new))
        finished()
    return Generated(out, finish, stopped_by)


def _ends_in(text: str, strings: Sequence[str]) -> bool:
    return any(s in text for s in strings)
