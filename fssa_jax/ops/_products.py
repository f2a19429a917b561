"""Matrix products of half-precision operands in float32, whose gradients are products in half precision too."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def float32_product(spec: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """einsum(spec, x, y) of operands of one type, accumulated and returned in float32.

    The gradient of a float32 output is float32. JAX would multiply it with a half-precision operand in float32, at half
    the speed of an accelerator's matrix units or less. Here it is rounded to the type of the operands first, as under
    autocast in PyTorch. Products of float32 operands are plain ones; the others have no forward-mode derivative.

    Args:
      spec: every index occurs in at least two of x, y and the result.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(spec, x, y)
    return _product(spec, x, y)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _forward(spec: str, x: Array, y: Array) -> tuple[Array, Any]:
    return _product(spec, x, y), (x, y)


def _backward(spec: str, operands: Any, gradient: Array) -> tuple[Array, Array]:
    x, y = operands
    inputs, out = spec.split("->")
    of_x, of_y = inputs.split(",")
    rounded = gradient.astype(x.dtype)
    return jnp.einsum(f"{out},{of_y}->{of_x}", rounded, y), jnp.einsum(f"{of_x},{out}->{of_y}", x, rounded)


_product.defvjp(_forward, _backward)
