"""Adapters that differ per row of a batch, applied to plain arrays: FiLM and low-rank.

An `AdapterTree` maps places to adapters. Places are the linear projections of a decoder block (query, key, value, out,
gate, up, down) and "residual", the residual stream after the block. Every leaf has a first axis over layers and a
second axis over rows. A row belongs to one sequence, or to n consecutive sequences (of one person). The factors of a
`LowRank` may lack the row axis; all rows then share them. A place may hold a tuple of adapters, applied in order.

Adapters add up: `combine_adapters` scales, interpolates and blends the adapters of several people.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from fssa_jax.ops._checks import check_shapes
from fssa_jax.types import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Film:
    """y ← γ ⊙ y + β: `scale` γ and `shift` β, ([layers,] batch, d)  (arXiv 1709.07871).

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Film
    >>> Film(scale=jnp.ones((4, 1, 8)), shift=jnp.zeros((4, 1, 8))).scale.shape  # the identity in 4 layers
    (4, 1, 8)
    """

    scale: Leaf
    shift: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """y ← y + ((x A) M) B: `down` A ([layers, batch,] inputs, r), `up` B ([layers, batch,] r, outputs).

    `core` M is (batch, r) for a diagonal, (batch, r, r) for a full one, or None for the identity. `down` and `up`
    without a batch axis are shared by all rows (LoRA, arXiv 2106.09685: both are shared, without a core).

    >>> import jax.numpy as jnp
    >>> from fssa_jax import LowRank
    >>> LowRank(down=jnp.ones((4, 8, 2)), up=jnp.zeros((4, 2, 8))).core is None  # a LoRA of rank 2 in 4 layers
    True
    """

    down: Leaf
    up: Leaf
    core: Leaf = None


AdapterTree = dict[str, Any]

PLACES = ("query", "key", "value", "out", "gate", "up", "down", "residual")


def _group_by_row(x: Float[Array, "batch t d"], rows: int) -> Float[Array, "rows m d"]:
    """The tokens of all sequences of each adapter row."""
    if x.shape[0] % rows:
        raise ValueError(f"adapters of {rows} rows cannot be divided evenly among {x.shape[0]} sequences")
    return x.reshape(rows, -1, x.shape[-1])


def apply_film(film: Film, x: Float[ArrayLike, "batch t d"]) -> Float[Array, "batch t d"]:
    """γ ⊙ x + β, the same for all tokens of a row. With n rows the batch is cut into n equal parts, one per row.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import Film, apply_film
    >>> print(apply_film(Film(jnp.full((1, 2), 3.0), jnp.ones((1, 2))), jnp.ones((1, 1, 2))))
    [[[4. 4.]]]
    """
    check_shapes(x=(x, "batch t d"), scale=(film.scale, "rows d"), shift=(film.shift, "rows d"))
    x = jnp.asarray(x)
    rows = _group_by_row(x, film.scale.shape[0])
    # In the type of γ: half precision would lose differences from 1 below .004.
    return (rows.astype(film.scale.dtype) * film.scale[:, None] + film.shift[:, None]).astype(x.dtype).reshape(x.shape)


def apply_low_rank(
    adapter: LowRank, x: Float[ArrayLike, "batch t inputs"], y: Float[ArrayLike, "batch t outputs"]
) -> Float[Array, "batch t outputs"]:
    """y + ((x A) M) B, with A, B shared or per row. With n rows the batch is cut into n equal parts, one per row.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.adapters import LowRank, apply_low_rank
    >>> x, y = jnp.ones((2, 1, 3)), jnp.zeros((2, 1, 1))
    >>> core = jnp.array([[1.0], [2.0]])  # rank 1, one core per row
    >>> apply_low_rank(LowRank(jnp.ones((3, 1)), jnp.ones((1, 1)), core), x, y)[:, 0, 0].tolist()
    [3.0, 6.0]
    """
    check_shapes(x=(x, "batch t inputs"), y=(y, "batch t outputs"), **_wanted(adapter, layers=False))
    x, y = jnp.asarray(x), jnp.asarray(y)
    down, up = adapter.down.astype(x.dtype), adapter.up.astype(x.dtype)
    rows = next(
        (a.shape[0] for a, n in ((adapter.core, 0), (down, 3), (up, 3)) if a is not None and a.ndim >= n), x.shape[0]
    )
    h = _factor(_group_by_row(x, rows), down)
    if adapter.core is not None:
        core = adapter.core.astype(x.dtype)
        h = h * core[:, None] if core.ndim == 2 else jnp.einsum("btr,brs->bts", h, core)
    return y + _factor(h, up).reshape(y.shape)


def _factor(h: Float[Array, "rows m d"], factor: Array) -> Float[Array, "rows m r"]:
    """h times a factor, (rows, d, r) or shared (d, r).

    A product with what is shared has all tokens in one axis: XLA's CPU backend takes several times as long for the
    gradient of a contraction over two.
    """
    if factor.ndim == 3:
        return jnp.einsum("bmd,bdr->bmr", h, factor)
    return (h.reshape(-1, h.shape[-1]) @ factor).reshape(*h.shape[:2], -1)


def apply_adapter(
    adapter: Film | LowRank | tuple | None,
    x: Float[ArrayLike, "batch t inputs"],
    y: Float[ArrayLike, "batch t outputs"],
) -> Float[Array, "batch t outputs"]:
    """The adapted output of a place; y itself without an adapter.

    Args:
      adapter: of one layer; a tuple is applied in order.
      x: the input of the place.
      y: its output. On the residual stream x is y.

    Raises:
      ValueError: shapes that do not fit together, or a batch that is not a multiple of the rows.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Film, apply_adapter
    >>> x = y = jnp.ones((1, 1, 2))
    >>> twice = Film(jnp.full((1, 2), 2.0), jnp.zeros((1, 2)))
    >>> print(apply_adapter((twice, twice), x, y))
    [[[4. 4.]]]
    """
    check_shapes(x=(x, "batch t inputs"), y=(y, "batch t outputs"))
    y = jnp.asarray(y)
    if adapter is None:
        return y
    if isinstance(adapter, tuple):
        for one in adapter:
            y = apply_adapter(one, x, y)
        return y
    return apply_film(adapter, y) if isinstance(adapter, Film) else apply_low_rank(adapter, x, y)


def check_adapters(adapters: AdapterTree, sizes: Iterable[tuple[str, int, int]], layers: int) -> None:
    """Raises ValueError, in one line, for adapters that do not fit the shape of a model.

    Args:
      sizes: (place, inputs, outputs) of the places of the model.
      layers: number of layers of the model. Adapters of fewer layers are of the last ones.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import Film, check_adapters
    >>> people = {"residual": Film(jnp.ones((4, 2, 8)), jnp.zeros((4, 2, 8)))}
    >>> check_adapters(people, [("residual", 8, 8)], layers=4)
    """
    known = {place: widths for place, *widths in sizes}
    number = adapter_layers(adapters)
    for place, adapter in adapters.items():
        if place not in known:
            raise ValueError(f"no place {place!r} for an adapter; there are {', '.join(known)}")
        for one in adapter if isinstance(adapter, tuple) else (adapter,):
            first, last = (one.scale, one.scale) if isinstance(one, Film) else (one.down, one.up)
            inputs = known[place][0] if isinstance(one, Film) else first.shape[-2]
            found = (first.shape[0], inputs, last.shape[-1])
            if found != (number, *known[place]) or not 0 < number <= layers:
                raise ValueError(
                    f"adapters of {place!r} are for another model: {found[0]} layers of {found[1]} → {found[2]}; "
                    f"this one has {layers} of {known[place][0]} → {known[place][1]}"
                )


def adapter_layers(adapters: AdapterTree) -> int:
    """Number of layers that are adapted: the last ones of a model.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import Film, adapter_layers
    >>> adapter_layers({"residual": Film(jnp.ones((4, 2, 8)), jnp.zeros((4, 2, 8)))})
    4
    """
    return next((leaf.shape[0] for leaf in jax.tree.leaves(adapters)), 0)


def adapter_rows(adapters: AdapterTree) -> int | None:
    """Number of rows of adapters; None if all of them are shared by everybody.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import Film, LowRank, adapter_rows
    >>> adapter_rows({"residual": Film(jnp.ones((4, 2, 8)), jnp.zeros((4, 2, 8)))})
    2
    >>> adapter_rows({"query": LowRank(jnp.ones((4, 8, 1)), jnp.ones((4, 1, 8)))}) is None
    True
    """
    for adapter in adapters.values():
        for one in adapter if isinstance(adapter, tuple) else (adapter,):
            if isinstance(one, Film):
                return one.scale.shape[1]
            leaf = next(
                (
                    x
                    for x, own in ((one.core, True), (one.down, one.down.ndim == 4), (one.up, one.up.ndim == 4))
                    if own and x is not None
                ),
                None,
            )
            if leaf is not None:
                return leaf.shape[1]
    return None


def take_adapter_rows(adapters: AdapterTree, rows: Int[ArrayLike, " n"]) -> AdapterTree:
    """The given rows, in this order and possibly repeated; leaves shared by all rows do not change.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.adapters import Film, take_adapter_rows
    >>> people = {"residual": Film(jnp.array([[[3.0], [1.0]]]), jnp.zeros((1, 2, 1)))}  # one layer, two people
    >>> take_adapter_rows(people, jnp.array([1, 0, 0]))["residual"].scale.ravel().tolist()
    [1.0, 3.0, 3.0]
    """
    _check_tree(adapters, rows=(rows, "n"))

    def one(adapter: Any) -> Any:
        if isinstance(adapter, tuple):
            return tuple(one(a) for a in adapter)
        if isinstance(adapter, Film):
            return Film(adapter.scale[:, rows], adapter.shift[:, rows])
        down, up = (factor[:, rows] if factor.ndim == 4 else factor for factor in (adapter.down, adapter.up))
        return LowRank(down, up, None if adapter.core is None else adapter.core[:, rows])

    return {place: one(adapter) for place, adapter in adapters.items()}


def lora_factors(
    adapter: Film | LowRank | tuple, row: int = 0
) -> tuple[Float[Array, "layers inputs r"], Float[Array, "layers r outputs"]]:
    """One row of the low-rank adapters of a place as the factors of one ordinary LoRA: ΔW = A B, with the core in A.

    Several adapters of a place add up: their factors are concatenated along the rank.

    Raises:
      ValueError: FiLM, which is not a low-rank change of the weights, or factors that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.adapters import LowRank, lora_factors
    >>> shared = LowRank(jnp.ones((1, 2, 1)), jnp.ones((1, 1, 3)), jnp.array([[[5.0], [7.0]]]))  # cores of two people
    >>> down, up = lora_factors(shared, row=1)
    >>> (down @ up)[0].tolist()
    [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
    """
    downs, ups = [], []
    for one in adapter if isinstance(adapter, tuple) else (adapter,):
        if isinstance(one, Film):
            raise ValueError("FiLM is not a low-rank change of the weights")
        check_shapes(**_wanted(one, layers=True))
        down, up = (factor[:, row] if factor.ndim == 4 else factor for factor in (one.down, one.up))
        if one.core is not None:
            core = one.core[:, row]
            down = down * core[:, None] if core.ndim == 2 else jnp.einsum("lir,lrs->lis", down, core)
        downs.append(down)
        ups.append(up)
    return jnp.concatenate(downs, axis=2), jnp.concatenate(ups, axis=1)


def with_strength(adapters: AdapterTree, strength: float) -> AdapterTree:
    """The change that each row makes, times `strength`: 0 is the identity. Leaves shared by all rows do not change.

    Args:
      adapters: first axis over layers, second over rows.
      strength: a finite number.

    Raises:
      ValueError: factors that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Film
    >>> from fssa_jax.ops.adapters import with_strength
    >>> people = {"residual": Film(jnp.array([[[3.0], [1.0]]]), jnp.array([[[1.0], [-1.0]]]))}  # one layer, two people
    >>> with_strength(people, 0.5)["residual"].scale.ravel().tolist()
    [2.0, 1.0]
    """

    def one(adapter: Any) -> Any:
        if isinstance(adapter, tuple):
            return tuple(one(a) for a in adapter)
        if isinstance(adapter, Film):
            return Film(1 + strength * (adapter.scale - 1), strength * adapter.shift)
        if adapter.core is not None:
            return LowRank(adapter.down, adapter.up, strength * adapter.core)
        shared = adapter.down.ndim == 3 and adapter.up.ndim == 3
        return adapter if shared else LowRank(adapter.down, strength * adapter.up)

    _check_tree(adapters)
    return adapters if strength == 1 else {place: one(adapter) for place, adapter in adapters.items()}


def combine_adapters(adapters: AdapterTree, weights: Float[ArrayLike, "out rows"]) -> AdapterTree:
    """Weighted sums of adapter rows: the change that a new row makes is Σ_i w_i times the change that row i makes.

    [[½, ½]] is the mean of two people, [[2]] one person twice as strong, [[0]] the identity. Leaves shared by all rows
    do not change.

    Args:
      adapters: first axis over layers, second over rows.
      weights: weight of each given row in each new row.

    Raises:
      ValueError: the number of weights per new row is not the number of rows.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Film, combine_adapters
    >>> people = {"residual": Film(jnp.array([[[3.0], [1.0]]]), jnp.array([[[1.0], [-1.0]]]))}  # one layer, two people
    >>> combine_adapters(people, jnp.array([[0.25, 0.75]]))["residual"].scale.ravel().tolist()
    [1.5]
    """
    _check_tree(adapters, weights=(weights, "out rows"))
    weights = jnp.asarray(weights)

    def mix(leaf: Array) -> Array:
        if leaf.shape[1] != weights.shape[1]:
            raise ValueError(f"weights of {weights.shape[1]} rows for adapters of {leaf.shape[1]}")
        return jnp.einsum("or,lr...->lo...", weights.astype(leaf.dtype), leaf)

    def one(adapter: Any) -> Any:
        if isinstance(adapter, tuple):
            return tuple(one(a) for a in adapter)
        if isinstance(adapter, Film):
            return Film(1 + mix(adapter.scale - 1), mix(adapter.shift))
        if adapter.down.ndim == 3 and adapter.up.ndim == 3:
            return adapter if adapter.core is None else LowRank(adapter.down, adapter.up, mix(adapter.core))
        # Σ w_i B_i M_i A_i is one product of factors that are concatenated along the rank.
        layers, rows = adapter.down.shape[:2] if adapter.down.ndim == 4 else adapter.up.shape[:2]
        out = weights.shape[0]
        down, up = adapter.down, adapter.up
        if adapter.core is not None:
            core = adapter.core
            product = "lrik,lrk->lrik" if core.ndim == 3 else "lrik,lrkj->lrij"
            down = jnp.einsum(product, _with_rows(down, rows), core)
        down, up = _with_rows(down, rows), _with_rows(up, rows)
        scaled = jnp.einsum("or,lrkd->lorkd", weights.astype(up.dtype), up)
        wide = jnp.moveaxis(down, 1, 2).reshape(layers, 1, down.shape[2], -1)
        return LowRank(
            jnp.broadcast_to(wide, (layers, out, *wide.shape[2:])), scaled.reshape(layers, out, -1, up.shape[-1])
        )

    return {place: one(adapter) for place, adapter in adapters.items()}


def _with_rows(factor: Array, rows: int) -> Array:
    """A factor (layers, [rows,] …) with the row axis added if it lacks one."""
    return factor if factor.ndim == 4 else jnp.broadcast_to(factor[:, None], (len(factor), rows, *factor.shape[1:]))


def _wanted(adapter: Film | LowRank, layers: bool) -> dict[str, tuple[Any, str]]:
    """Arguments of `check_shapes` for an adapter, of all layers or of one."""
    lead = "layers " if layers else ""
    if isinstance(adapter, Film):
        return {"scale": (adapter.scale, f"{lead}rows d"), "shift": (adapter.shift, f"{lead}rows d")}
    own = 3 + layers
    wanted = {
        "down": (adapter.down, f"{lead}rows inputs r" if adapter.down.ndim == own else f"{lead}inputs r"),
        "up": (adapter.up, f"{lead}rows r outputs" if adapter.up.ndim == own else f"{lead}r outputs"),
    }
    if adapter.core is not None:
        wanted["core"] = (adapter.core, f"{lead}rows r r" if adapter.core.ndim == own else f"{lead}rows r")
    return wanted


def _check_tree(adapters: AdapterTree, **others: tuple[Any, str]) -> None:
    check_shapes(**others)
    for place, adapter in adapters.items():
        for one in adapter if isinstance(adapter, tuple) else (adapter,):
            check_shapes(**{f"{place}.{name}": value for name, value in _wanted(one, layers=True).items()})
