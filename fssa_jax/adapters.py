"""Adapters that differ from row to row of a batch, applied to plain arrays: FiLM and low-rank.

An `AdapterTree` maps names of places to adapters. Places are the linear projections of a decoder block (query, key,
value, out, gate, up, down) and "residual", the residual stream after the block. Every leaf of a tree has a first axis
over layers; inside a layer it has a batch axis, one row for each sequence. Only the factors of a `LowRank` may have
none, where all rows share them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.types import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Film:
    """y ← γ ⊙ y + β: `scale` γ and `shift` β, ([layers,] batch, d)  (arXiv 1709.07871)."""

    scale: Leaf
    shift: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """y ← y + ((x A) M) B: `down` A ([layers, batch,] inputs, r), `up` B ([layers, batch,] r, outputs).

    `core` M is (batch, r) for a diagonal, (batch, r, r) for a full one, or None for the identity. `down` and `up`
    without a batch axis are shared by all rows (LoRA, arXiv 2106.09685, is both shared and no core).
    """

    down: Leaf
    up: Leaf
    core: Leaf = None


AdapterTree = dict[str, Any]

PLACES = ("query", "key", "value", "out", "gate", "up", "down", "residual")


def apply_film(film: Film, x: Float[Array, "batch t d"]) -> Float[Array, "batch t d"]:
    """γ ⊙ x + β, the same for all tokens of a row."""
    return x * film.scale.astype(x.dtype)[:, None] + film.shift.astype(x.dtype)[:, None]


def apply_low_rank(
    adapter: LowRank, x: Float[Array, "batch t inputs"], y: Float[Array, "batch t outputs"]
) -> Float[Array, "batch t outputs"]:
    """y + ((x A) M) B, with A, B shared or one for each row.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.adapters import LowRank, apply_low_rank
    >>> x, y = jnp.ones((2, 1, 3)), jnp.zeros((2, 1, 1))
    >>> core = jnp.array([[1.0], [2.0]])  # rank 1, another core in each row
    >>> apply_low_rank(LowRank(jnp.ones((3, 1)), jnp.ones((1, 1)), core), x, y)[:, 0, 0].tolist()
    [3.0, 6.0]
    """
    down, up = adapter.down.astype(x.dtype), adapter.up.astype(x.dtype)
    h = jnp.einsum("btd,bdr->btr" if down.ndim == 3 else "btd,dr->btr", x, down)
    if adapter.core is not None:
        core = adapter.core.astype(x.dtype)
        h = h * core[:, None] if core.ndim == 2 else jnp.einsum("btr,brs->bts", h, core)
    return y + jnp.einsum("btr,brd->btd" if up.ndim == 3 else "btr,rd->btd", h, up)


def apply_projection_adapter(
    adapter: Film | LowRank | None, x: Float[Array, "batch t inputs"], y: Float[Array, "batch t outputs"]
) -> Float[Array, "batch t outputs"]:
    """The output y of a projection of x, adapted; y itself where there is no adapter."""
    if adapter is None:
        return y
    return apply_film(adapter, y) if isinstance(adapter, Film) else apply_low_rank(adapter, x, y)
