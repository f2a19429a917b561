"""Generation: ragged rows do not touch each other, sampling obeys its settings, stops, seeds, streaming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.generate import generate
from fssa_jax.ops.sampling import Sampling, next_tokens, penalise, restrict
from tests import small_lm
from tests.mistakes import complaint

PROMPTS = small_lm.ragged(0, [5, 11, 3])


@pytest.fixture(scope="module")
def lm():
    return small_lm.decoder()


@pytest.fixture(scope="module")
def greedy(lm):
    return generate(*lm, PROMPTS, 20).tokens


def test_greedy_is_the_argmax_of_the_whole_forward(lm, greedy):
    model, variables = lm
    for prompt, new in zip(PROMPTS, greedy, strict=True):
        logits = model.apply(variables, jnp.asarray([prompt + new]))[0]
        assert logits.argmax(-1).tolist()[len(prompt) - 1 : -1] == new


def test_rows_do_not_touch_each_other(lm, greedy):
    assert [generate(*lm, [p], 20).tokens[0] for p in PROMPTS] == greedy
    sampled = generate(*lm, PROMPTS, 20, sampling=Sampling(temperature=1.0), seeds=[7, 8, 9]).tokens
    alone = generate(*lm, [PROMPTS[2]], 20, sampling=Sampling(temperature=1.0), seeds=[9]).tokens
    assert alone[0] == sampled[2]


def test_how_decoding_is_cut_into_calls_does_not_matter(lm):
    many, few = (
        generate(*lm, PROMPTS, 20, sampling=Sampling(temperature=1.0), tokens_per_call=n).tokens for n in (3, 16)
    )
    assert many == few


def test_a_seed_is_a_sample(lm):
    draw = lambda seed: generate(*lm, [PROMPTS[0]] * 2, 20, sampling=Sampling(temperature=1.5), seeds=[seed, 99]).tokens  # noqa: E731
    assert draw(1) == draw(1)
    assert draw(1)[0] != draw(2)[0]
    assert draw(1)[1] == draw(2)[1]


def test_a_stop_token_ends_its_row(lm, greedy):
    stop = greedy[0][6]
    first = greedy[0].index(stop)
    out = generate(*lm, PROMPTS, 20, stop_tokens=[stop])
    assert out.tokens[0] == greedy[0][:first]
    assert out.finish[0] == "stop"
    for row in (1, 2):
        end = greedy[row].index(stop) if stop in greedy[row] else 20
        assert out.tokens[row] == greedy[row][:end]


def test_a_stop_string_ends_its_row(lm, greedy):
    text = lambda tokens: " ".join(map(str, tokens)) + " "  # noqa: E731
    string = f"{greedy[1][4]} {greedy[1][5]} "
    out = generate(*lm, PROMPTS, 20, stop_strings=[string], decode=text)
    assert out.finish[1] == "stop"
    assert text(out.tokens[1]).endswith(string)
    assert string not in text(out.tokens[1][:-1])


def test_streaming_gives_every_token_once_and_in_order(lm, greedy):
    seen: list[list[int]] = [[], [], []]
    calls = []

    def on_tokens(row, tokens):
        calls.append(row)
        seen[row] += tokens

    generate(*lm, PROMPTS, 20, on_tokens=on_tokens, tokens_per_call=6)
    assert seen == greedy
    assert len(calls) == 3 * (1 + 4)


def test_prompts_that_do_not_fit_are_named(lm):
    assert complaint(generate, *lm, [[3] * 120], 20).startswith("prompt 0: 120 tokens and 20 new ones do not fit")
    assert complaint(generate, *lm, [[3], []], 4).startswith("prompt 1: empty")


def test_nothing_is_asked_for_and_wrong_arguments_are_named(lm):
    assert generate(*lm, PROMPTS, 0).tokens == [[], [], []]
    assert "prompt token 200 is not in" in complaint(generate, *lm, [[5, 200]], 3)
    with pytest.raises(ValueError, match="seeds must be 3 numbers"):
        generate(*lm, PROMPTS, 3, seeds=[1])


def test_a_prompt_may_fill_the_window(lm):
    assert len(generate(*lm, [[3] * 124], 4).tokens[0]) == 4


def test_top_k_and_top_p_keep_the_likeliest():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    assert np.isfinite(np.asarray(restrict(logits, 2, 1.0)))[0].tolist() == [True, True, False, False]
    assert np.isfinite(np.asarray(restrict(logits, 0, 0.81)))[0].tolist() == [True, True, True, False]
    assert np.isfinite(np.asarray(restrict(logits, 0, 0.01)))[0].tolist() == [True, False, False, False]
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = next_tokens(jnp.tile(logits, (4000, 1)), keys, None, Sampling(temperature=1.0, top_p=0.81))
    share = np.bincount(np.asarray(drawn), minlength=4) / 4000
    np.testing.assert_allclose(share, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)


def test_the_repetition_penalty_moves_seen_tokens_down():
    logits = jnp.array([[2.0, -2.0, 1.0]])
    out = penalise(logits, jnp.array([[True, True, False]]), 2.0)
    assert out.tolist() == [[1.0, -4.0, 1.0]]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"repetition_penalty": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="temperature ≥ 0"):
        Sampling(**wrong)
