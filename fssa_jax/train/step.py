"""One pure training step, `(state, data) -> (state, metrics)`, for any loss, on one device or many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from fssa_jax.train.state import TrainState
from fssa_jax.types import PyTree

Metrics = dict[str, Any]


class Batch(NamedTuple):
    """The input of a loss: `rows`, with a first axis over users or texts on every leaf, and the tables they index.

    A step divides the rows among devices and accumulated parts; all of them share the tables.
    """

    rows: Any
    tables: Any


Draw = Callable[[Key[Array, " users"], Any], Any]
"""(keys, tables) ↦ rows: each user's row is drawn with its own key."""

Loss = Callable[[PyTree, Batch, Key[Array, ""]], tuple[Array, Metrics]]
"""(variables, batch, key) ↦ (mean loss over the rows, metrics). The key is the same on every device and for every part.

The entry "batch_stats" of the metrics, if present, replaces the running statistics of the state."""

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def draw_rows(draw: Draw, seed: int, step: int | Int[Array, ""], users: int, tables: Any) -> tuple[Any, Key[Array, ""]]:
    """The rows of a step's batch and the key that they share, as a function of (seed, step)."""
    key_users, key_shared = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return draw(jax.random.split(key_users, users), tables), key_shared


def make_step(
    loss: Loss,
    draw: Draw,
    optimizer: optax.GradientTransformation,
    *,
    users: int,
    seed: int,
    accumulate: int = 1,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> Step:
    """Makes the training step: draw the batch of (seed, step), one gradient of its mean loss, one update.

    With `axis_name` each device takes its share of the rows. n devices then compute the same as one, except for the
    last bits of sums.

    Args:
      loss: loss of a batch; see `Loss`.
      draw: draws the rows of a batch; see `Draw`.
      optimizer: of the parameters.
      users: rows of the whole batch, over all devices.
      seed: seed of the batches.
      accumulate: parts that a device computes one after the other.
      average_decay: decay of the average of the parameters, if the state keeps one.
      axis_name: axis of the pmap that the step runs in, if any.

    Returns:
      `(state, tables) -> (state, metrics)`. Metrics are means over the batch; "grad_norm" is the global norm of the
      batch's gradient.
    """

    def gradient_of(state: TrainState, batch: Batch, key: Array) -> tuple[PyTree, Metrics]:
        def objective(params: PyTree) -> tuple[Array, Metrics]:
            return loss({**state.trained, "params": params}, batch, key)

        return jax.grad(objective, has_aux=True)(state.params)

    def step(state: TrainState, tables: Any) -> tuple[TrainState, Metrics]:
        rows, key = draw_rows(draw, seed, state.step, users, tables)
        share = users
        if axis_name is not None:
            share = users // jax.lax.axis_size(axis_name)
            start = jax.lax.axis_index(axis_name) * share
            rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, share), rows)
        if accumulate == 1:
            gradients, metrics = gradient_of(state, Batch(rows, tables), key)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulate, share // accumulate, *x.shape[1:]), rows)

            def add(total: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, gradient_of(state, Batch(part, tables), key)), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(lambda: gradient_of(state, Batch(first, tables), key))
            total, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)
            gradients, metrics = jax.tree.map(lambda x: x / accumulate, total)
        if axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        batch_stats = metrics.pop("batch_stats", state.batch_stats)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # required by optax; the tests are strict elsewhere
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.updated(params, batch_stats, opt_state, average_decay), metrics

    return step


def many_steps(step: Step, number: int) -> Step:
    """Runs `number` steps in one call; the metrics are stacked, one row per step."""

    def run(state: TrainState, tables: Any) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda carry, _: step(carry, tables), state, None, length=number)

    return run
