"""Responses that share a row: nothing but the number of computed tokens differs from one text per row."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.packing import number_prompts, pack, packed_lengths, shared_lengths
from fssa_jax.lm.scoring import text_log_probs
from fssa_jax.lm.texts import Texts
from fssa_jax.models.decoder import Decoder, DecoderConfig, empty_cache
from fssa_jax.ops.adapters import LowRank
from fssa_jax.ops.padding import best_plan

_SHAPE = DecoderConfig(vocabulary=40, width=16, layers=3, heads=4, groups=2, head_dim=4, mlp_width=24)
_WIDTH = 14


def table(prompts, responses, seed=0):
    """Texts with prompts and responses of these lengths, (n,) each; equal lengths of prompts are equal prompts."""
    rng = np.random.default_rng(seed)
    asked = {n: rng.integers(1, 40, n) for n in set(prompts)}
    tokens = np.zeros((len(prompts), _WIDTH), np.int32)
    for row, before, after in zip(tokens, prompts, responses, strict=True):
        row[:before], row[before : before + after] = asked[before], rng.integers(1, 40, after)
    starts = np.array(prompts, np.int32)
    ends = starts + np.array(responses, np.int32)
    numbers = number_prompts(tokens, starts)
    return Texts(*map(jnp.asarray, (tokens, starts, ends)), prompts=jnp.asarray(numbers))


@pytest.fixture(scope="module")
def model():
    decoder = Decoder(_SHAPE)
    return decoder, decoder.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


def adapters_of(rows, scale=1.0):
    """A LoRA of the last two layers' queries for each of these rows."""
    down, up = (jax.random.normal(jax.random.key(i), (2, rows, *s)) for i, s in enumerate(((16, 3), (3, 16))))
    return {"query": LowRank(down, scale * up)}


PROMPTS, RESPONSES = (5, 5, 5, 3, 3, 7, 1, 1), (4, 9, 2, 6, 1, 7, 5, 3)
IDS = jnp.array([[0, 1, 2], [3, 4, 3], [2, 5, 0], [6, 7, 6]])  # the third row has two prompts


def alone(model, texts, ids, adapters=None):
    rows = None if adapters is None else jax.tree.map(lambda x: jnp.repeat(x, ids.shape[1], 1), adapters)
    return text_log_probs(*model, texts, ids.reshape(-1), rows).reshape(ids.shape)


@pytest.mark.parametrize("adapted", [False, True])
def test_log_probs_are_those_of_the_texts_alone(model, adapted):
    texts, adapters = table(PROMPTS, RESPONSES), adapters_of(4) if adapted else None
    expected = alone(model, texts, IDS, adapters)
    packed = text_log_probs(*model, texts, IDS, adapters)
    np.testing.assert_allclose(packed, expected, rtol=1e-5, atol=1e-5)
    plan = best_plan(np.sort(np.asarray(packed_lengths(texts, IDS)))[::-1], 3)
    assert len(plan) > 1
    np.testing.assert_allclose(text_log_probs(*model, texts, IDS, adapters, plan), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_texts_alone(model):
    texts = table(PROMPTS, RESPONSES)

    def total(scale, of):
        return (of(adapters_of(4, scale)) * jnp.arange(1.0, 13.0).reshape(4, 3)).sum()

    packed = jax.grad(total)(0.5, lambda a: text_log_probs(*model, texts, IDS, a))
    expected = jax.grad(total)(0.5, lambda a: alone(model, texts, IDS, a))
    assert abs(float(expected)) > 0.1
    np.testing.assert_allclose(packed, expected, rtol=1e-4)


@pytest.mark.parametrize("change", [{"windows": (None, 3, 4)}, {"attention_softcap": 5.0}, {"post_norms": True}])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_other_decoders_and_recomputed_layers(change, remat):
    decoder = Decoder(dataclasses.replace(_SHAPE, **change), remat=remat)
    model = decoder, decoder.init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))
    texts = table(PROMPTS, RESPONSES)
    np.testing.assert_allclose(text_log_probs(*model, texts, IDS), alone(model, texts, IDS), rtol=1e-5, atol=1e-5)


def test_states_below_the_adapted_layers(model):
    texts, adapters = table(PROMPTS, RESPONSES), adapters_of(4)
    states = model[0].apply(model[1], texts.tokens, until=1, method="hidden")[0]
    kept = dataclasses.replace(texts, states=states, layers=1)
    found = text_log_probs(*model, kept, IDS, adapters)
    np.testing.assert_allclose(found, alone(model, texts, IDS, adapters), rtol=1e-5, atol=1e-5)


def test_a_shared_prompt_is_computed_once():
    texts = table(PROMPTS, RESPONSES)
    assert shared_lengths(texts, IDS).tolist() == [4, 2, 0, 0]
    # 4 + 5 + 10 + 3, 2 + 7 + 2 + 7, all of each, and prompts of one token, which predicts the response and stays
    assert packed_lengths(texts, IDS).tolist() == [22, 18, 7 + 14 + 9, 6 + 4 + 6]
    assert packed_lengths(texts, IDS[:, :1]).tolist() == [9, 9, 7, 6]


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=2, max_size=5))
def test_every_token_of_a_response_is_scored_once_where_it_stood(lengths):
    """Also where a text has no prompt, whose first token nothing predicts, or a text stands in a row twice."""
    texts = table(*zip(*lengths, strict=True))
    ids = jnp.array([[0, len(lengths) - 1, 0]])
    width = int(packed_lengths(texts, ids)[0])
    rows = pack(texts, ids, width + 2)  # two tokens of padding
    found = [
        (int(segment), int(position), int(token))
        for token, position, segment, scored in zip(
            *(np.asarray(getattr(rows, name))[0] for name in ("tokens", "positions", "segments", "scored")), strict=True
        )
        if scored
    ]
    tokens, starts, ends = (np.asarray(x) for x in (texts.tokens, texts.starts, texts.ends))
    expected = [
        (i + 1, place, int(tokens[n, place]))
        for i, n in enumerate(np.asarray(ids)[0])
        for place in range(max(starts[n], 1), ends[n])
    ]
    assert found == expected
    assert not rows.scored[0, 0]  # nothing is before it
    before = np.flatnonzero(rows.scored[0]) - 1
    np.testing.assert_array_equal(rows.segments[0, before], [segment for segment, _, _ in expected])
    np.testing.assert_array_equal(rows.positions[0, before] + 1, [place for _, place, _ in expected])


@pytest.mark.parametrize("given", [{}, {"positions": jnp.zeros((1, 3), jnp.int32), "cache": True}])
def test_segments_of_a_decoder_need_positions_and_no_cache(model, given):
    if given.get("cache"):
        given = {**given, "cache": empty_cache(_SHAPE, 1, 8)}
    tokens = jnp.ones((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="segments need the positions of their tokens, and no cache"):
        model[0].apply(model[1], tokens, segments=tokens, method="hidden", **given)
