"""Products of half-precision operands with float32 results, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.ops._products import float32_product

SPECS = {"md,dv->mv": ((5, 3), (3, 7)), "bgtd,bgsd->bgts": ((2, 3, 5, 4), (2, 3, 7, 4))}


def gradients(spec: str, x: jax.Array, y: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.grad(lambda x, y: (float32_product(spec, x, y) * weights).sum(), argnums=(0, 1))(x, y)


@pytest.mark.parametrize("spec", SPECS)
def test_half_precision_values_and_gradients_are_those_of_float32_up_to_rounding(spec):
    keys = jax.random.split(jax.random.key(0), 3)
    x, y = (jax.random.normal(k, s).astype(jnp.bfloat16) for k, s in zip(keys, SPECS[spec], strict=False))
    wide_x, wide_y = x.astype(jnp.float32), y.astype(jnp.float32)
    out = float32_product(spec, x, y)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, jnp.einsum(spec, wide_x, wide_y), rtol=1e-5, atol=1e-5)
    weights = jax.random.normal(keys[2], out.shape)
    for mine, exact in zip(gradients(spec, x, y, weights), gradients(spec, wide_x, wide_y, weights), strict=True):
        assert mine.dtype == jnp.bfloat16
        wide = mine.astype(jnp.float32)
        assert jnp.linalg.norm(wide - exact) <= 0.01 * jnp.linalg.norm(exact)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_of_half_precision_contain_no_product_in_float32(spec):
    x, y = (jnp.ones(s, jnp.bfloat16) for s in SPECS[spec])
    weights = jnp.ones(float32_product(spec, x, y).shape)
    jaxpr = jax.make_jaxpr(lambda x, y: gradients(spec, x, y, weights))(x, y).jaxpr
    dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(dots) >= 2
    assert all(v.aval.dtype == jnp.bfloat16 for e in dots for v in e.invars)
