"""The two programs of decoding: by hand they give what `generate` gives; the weights exist once."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fssa_jax.lm.generate as generation
from fssa_jax.lm.engine import Engine, State
from fssa_jax.ops.adapters import Film
from fssa_jax.ops.sampling import Sampling
from tests import small_lm

PROMPTS = small_lm.ragged(0, [5, 11, 3])
TOKENS = jnp.asarray([[*p, *[0] * (16 - len(p))] for p in PROMPTS])
LENGTHS = jnp.asarray([len(p) for p in PROMPTS], jnp.int32)


@pytest.fixture(scope="module")
def lm():
    return small_lm.decoder()


def keys(*seeds: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def film() -> dict[str, Film]:
    rng = np.random.default_rng(0)
    scale, shift = jnp.asarray(rng.normal(size=(2, small_lm.CONFIG.layers, 3, 32)), jnp.float32) * 0.3
    return {"residual": Film(1 + scale, shift)}


@pytest.mark.parametrize("adapters", [None, film()], ids=["plain", "film"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3)], ids=["greedy", "sampled"]
)
def test_the_two_functions_by_hand_are_generate(lm, sampling, adapters):
    model, variables = lm
    engine = Engine(model, sampling, slots=32, steps=5)
    state = engine.prefill(variables, TOKENS, LENGTHS, keys(7, 8, 9), adapters)
    parts = [state.token[:, None]]
    for _ in range(3):
        state, new = engine.advance(variables, state, adapters)
        parts.append(new)
    whole = generation.generate(
        model, variables, PROMPTS, 16, adapters=adapters, sampling=sampling, seeds=[7, 8, 9], tokens_per_call=16
    )
    assert isinstance(whole, generation.Generated)
    assert jnp.concatenate(parts, 1).tolist() == whole.tokens
    np.testing.assert_array_equal(state.position, LENGTHS + 15)


def test_a_state_is_a_value_that_decoding_can_return_to(lm):
    model, variables = lm
    engine = Engine(model, slots=32, steps=4)
    state: State = engine.prefill(variables, TOKENS, LENGTHS, keys(0, 1, 2))
    _, first = engine.advance(variables, state)
    _, again = engine.advance(variables, state)
    np.testing.assert_array_equal(first, again)


def test_advance_stops_where_all_rows_are_done(lm):
    model, variables = lm
    every = Engine(model, slots=32, steps=6, stop_tokens=tuple(range(model.config.vocabulary)))
    state = every.prefill(variables, TOKENS, LENGTHS, keys(0, 1, 2))
    state, new = every.advance(variables, state)
    assert state.done.all()
    np.testing.assert_array_equal(state.position, LENGTHS + 1)
    assert not new[:, 1:].any()


def test_the_weights_exist_once_however_much_is_generated(lm):
    """Arrays that are alive after several calls of different shapes: none more than before the first."""
    model, variables = lm

    def alive() -> int:
        gc.collect()
        return sum(x.nbytes for x in jax.live_arrays())

    before = alive()
    for number, max_new in ((1, 4), (3, 4), (3, 20)):
        generation.generate(model, variables, PROMPTS[:number], max_new)
    smallest = min(x.nbytes for x in jax.tree.leaves(variables["params"]["layers"]))
    assert alive() - before < smallest


def test_decoding_copies_no_weights(lm):
    """The compiled program needs less room than the layers take. Of stacked layers it would need more."""
    model, variables = lm
    engine = Engine(model, slots=32, steps=4)
    state = engine.prefill(variables, TOKENS, LENGTHS, keys(0, 1, 2))
    compiled = Engine.advance.lower(engine, variables, state).compile()
    stored = sum(x.nbytes for x in jax.tree.leaves(variables["params"]["layers"]))
    assert compiled.memory_analysis().temp_size_in_bytes < stored
