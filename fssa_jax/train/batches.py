"""Compiled calls of many steps; texts of similar length are padded together."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fssa_jax.lm.packing import packed_lengths
from fssa_jax.ops.padding import Plan, cheapest, few_plans
from fssa_jax.train import parallel
from fssa_jax.train.state import TrainState
from fssa_jax.train.step import Metrics, Step, many_steps

Advance = Callable[[TrainState, int, int], tuple[TrainState, Metrics]]
"""(state, step, number) ↦ (state, metrics): `number` steps from `step` on."""

_TYPICAL_CALLS = 32  # calls whose text lengths determine the padding plans


def plain_calls(step: Step, tables: Any, mode: Literal["none", "pmap"]) -> Advance:
    """Steps with arrays of one fixed shape."""
    everywhere = parallel.replicate(tables, mode)
    calls: dict[int, Callable] = {}

    def advance(state: TrainState, first: int, number: int) -> tuple[TrainState, Metrics]:
        del first
        if number not in calls:
            calls[number] = parallel.compile_steps(many_steps(step, number), mode)
        return calls[number](state, everywhere)

    return advance


def padded_calls(
    step: Callable[[Plan], Step],
    ids: Callable[[Int[Array, ""], Any], Int[Array, "*users n"]],
    tables: Any,
    mode: Literal["none", "pmap"],
    *,
    steps: int,
    steps_per_call: int,
    accumulate: int,
    buckets: int,
) -> Advance:
    """Steps on texts of many lengths: every batch is padded by one of a few plans, which depends only on the batch.

    Args:
      step: makes the step for a plan.
      ids: (step, tables) ↦ the texts of its batch, in the order in which devices and accumulated parts take them; n
        texts share a row (lm/packing.py).
      tables: have a token table `texts` (lm/scoring.py).
      mode: see `parallel.resolve`.
      steps: number of training steps, from which typical batches are sampled.
      steps_per_call: steps per call.
      accumulate: accumulated parts per batch.
      buckets: padded lengths per part.
    """
    together = jax.eval_shape(ids, jax.ShapeDtypeStruct((), jnp.int32), tables).shape[-1]
    width = tables.texts.tokens.shape[1] * together
    parts = accumulate * (jax.device_count() if mode == "pmap" else 1)

    @partial(jax.jit, static_argnames="number")
    def ranked(first: jax.Array, tables: Any, number: int) -> jax.Array:
        """(rows,) for each i, the maximum length of the i-th longest row over all parts of the next batches."""

        def of(step: jax.Array) -> jax.Array:
            return packed_lengths(tables.texts, ids(step, tables)).reshape(parts, -1)

        lengths = jax.vmap(of)(first + jnp.arange(number))
        return jnp.sort(lengths, axis=-1, descending=True).max((0, 1))

    short = dataclasses.replace(tables.texts, tokens=tables.texts.tokens[:, :1])
    host = dataclasses.replace(tables, texts=short)

    def lengths(first: int, number: int) -> jax.Array:
        return ranked(jax.device_put(np.int32(first)), host, number)

    number = min(steps_per_call, steps)
    typical = np.unique(np.linspace(0, steps - number, _TYPICAL_CALLS).astype(int))
    batches = jax.device_get([lengths(int(first), number) for first in typical])
    plans = few_plans(np.stack(batches), buckets, width)
    everywhere = parallel.replicate(tables, mode)
    cut: dict[int, Any] = {}
    calls: dict[tuple[Plan, int], Callable] = {}
    ahead: dict[tuple[int, int], jax.Array] = {}

    def advance(state: TrainState, first: int, number: int) -> tuple[TrainState, Metrics]:
        coming = ahead.pop((first, number), None)
        plan = cheapest(plans, jax.device_get(lengths(first, number) if coming is None else coming))
        # Dispatched before the steps, so that the next call need not wait for the steps to finish.
        ahead.clear()
        ahead[first + number, number] = lengths(first + number, number)
        size = plan[0][1]
        if size not in cut:
            with jax.transfer_guard("allow"):
                tokens = parallel.replicate(tables.texts.tokens[:, :size], mode)
                cut[size] = dataclasses.replace(everywhere, texts=dataclasses.replace(everywhere.texts, tokens=tokens))
        if (plan, number) not in calls:
            calls[plan, number] = parallel.compile_steps(many_steps(step(plan), number), mode)
        return calls[plan, number](state, cut[size])

    return advance
