"""Measures of what is written: what a text that is broken does to each of them."""

import dataclasses

import numpy as np
import pytest

from fssa_jax.evaluate.quality import distinct, loops, quality
from fssa_jax.lm.base import load_base
from fssa_jax.lm.writer import Writer
from fssa_jax.ops.sampling import Sampling
from tests import tiny_policy


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("go go go go", True),
        ("go go go", False),
        ("a b c a b c a b c a b c", True),
        ("a b c a b c a b c", False),
        ("yes, aaaaaaaaaa", True),
        ("a line\n----------\nbelow", False),
        ("It is so. It is not so. It is so, it is not.", False),
        ("", False),
    ],
)
def test_a_loop_is_what_repeats_itself_at_once(text, looped):
    assert loops(text) == looped


def test_distinct_trigrams():
    assert distinct("one two three four") == 1
    assert distinct("a b") == 1
    assert distinct("a b c a b c") == pytest.approx(3 / 4)


def test_the_base_finds_its_own_samples_likelier_than_others(tmp_path):
    base = load_base(str(tiny_policy.base(tmp_path / "base")))
    prompts = ["how do I bake bread?", "hey"] * 6
    cold, hot = (Writer(base, Sampling(t), 12)(prompts, None, 0) for t in (0.3, 3.0))

    def embed(texts):
        return np.stack([[1.0, 0.0] if "bread" in text else [0.6, 0.8] for text in texts])

    found = [quality(base, samples, prompts, embed) for samples in (cold, hot)]
    assert found[0]["nll_per_token"] < found[1]["nll_per_token"] - 0.5
    for values, samples in zip(found, (cold, hot), strict=True):
        assert values["words"] == pytest.approx(np.mean([len(text.split()) for text in samples.texts]))
        assert 0 < values["distinct"] <= 1
    said = [("bread" in q, "bread" in t) for q, t in zip(prompts, hot.texts, strict=True) if t.strip()]
    assert found[1]["topic"] == pytest.approx(np.mean([1.0 if a == b else 0.6 for a, b in said]))
    assert "topic" not in quality(base, cold, prompts, None)
    silent = dataclasses.replace(cold, texts=["", *cold.texts[1:]])  # to say nothing is not to say it well
    before, after = (quality(base, samples, prompts, None) for samples in (cold, silent))
    first = cold.texts[0]
    assert after["distinct"] == pytest.approx(before["distinct"] - distinct(first) / 12)
    assert after["without_loops"] == pytest.approx(before["without_loops"] - (not loops(first)) / 12)
