"""Argument checks of the public functions of this room, and their error messages."""

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array


def check_shapes(**wanted: tuple[Any, str]) -> None:
    """Raises ValueError unless the shapes are as wanted, with the same size for the same dimension name.

    Args:
      wanted: value and dimensions of each argument, such as "batch t 3". The first may be "*batch", for any number of
        dimensions; "" is a scalar.
    """
    sizes: dict[str, int | tuple[int, ...]] = {}
    for name, (value, dims) in wanted.items():
        shape, names = _shape_of(value), dims.split()
        found = dict[str, int | tuple[int, ...]]()
        lead = 0
        if names and names[0].startswith("*"):
            lead = max(len(shape) - len(names) + 1, 0)
            found[names.pop(0)] = shape[:lead]
        fits = len(shape) - lead == len(names)
        for dim, size in zip(names, shape[lead:], strict=False):
            fits &= found.setdefault(dim, size) == size
        known = sizes | {dim: int(dim) for dim in names if dim.isdecimal()}
        if not fits or any(known.get(dim, size) != size for dim, size in found.items()):
            raise ValueError(f"{name}: wanted the shape {_shape(dims, known)}, got {shape}")
        sizes |= found


def _shape_of(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if hasattr(value, "shape") else tuple(np.shape(value))


def _shape(dims: str, sizes: dict[str, int | tuple[int, ...]]) -> str:
    """The wanted shape, with the sizes known from earlier arguments."""
    words: list[str] = []
    for dim in dims.split():
        size = sizes.get(dim, dim)
        words += map(str, size) if isinstance(size, tuple) else [str(size)]
    return f"({words[0]},)" if len(words) == 1 else f"({', '.join(words)})"


def floats_alike(**values: ArrayLike) -> tuple[Array, ...]:
    """The arguments as floating-point arrays of one shape.

    Scalars are broadcast to the shape of the arrays. Python numbers take the arrays' type.

    Raises:
      ValueError: two arrays of different shapes.
    """
    shapes = {name: _shape_of(value) for name, value in values.items()}
    first = next((name for name, shape in shapes.items() if shape), None)
    shape = () if first is None else shapes[first]
    for name, other in shapes.items():
        if other not in ((), shape):
            raise ValueError(f"{name}: wanted the shape {shape} of {first}, or a scalar; got {other}")
    kinds = [jnp.asarray(value).dtype for value in values.values() if not isinstance(value, numbers.Number)]
    kind = next((kind for kind in kinds if jnp.issubdtype(kind, jnp.floating)), jnp.result_type(float))
    return tuple(jnp.broadcast_to(_floating(value, kind), shape) for value in values.values())


def _floating(value: ArrayLike, kind: Any) -> Array:
    array = jnp.asarray(value)
    typed = not isinstance(value, numbers.Number) and jnp.issubdtype(array.dtype, jnp.floating)
    return array if typed else array.astype(kind)


def is_known(value: ArrayLike) -> bool:
    """Whether the value can be checked; under jax.jit and jax.grad only its shape is known."""
    return not isinstance(value, Tracer)


def as_scalar(name: str, value: ArrayLike) -> float | Array:
    """Returns a number as it is, and a scalar array, possibly traced, as an array.

    Raises:
      ValueError: an array with dimensions.
    """
    check_shapes(**{name: (value, "")})
    return float(value) if isinstance(value, numbers.Real) else jnp.asarray(value)
