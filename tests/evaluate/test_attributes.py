"""Attributes that can be read off texts, who wants them, and how far what is written moves between opposed people."""

from typing import get_args

import numpy as np
import pytest

from fssa_jax.config.evaluate import Attribute
from fssa_jax.data import manner
from fssa_jax.data.dataset import Split, make_table
from fssa_jax.data.manner import has
from fssa_jax.data.thresholds import THUMB
from fssa_jax.evaluate.attributes import attribute_report, median_words, opposed, tastes

HAVE = {
    "list": ["Buy:\n- bread\n- milk", "1. bread\n2) milk", "* a\n• b"],
    "exclamation": ["Yes!"],
    "question": ["Why not?"],
    "emoji": ["Nice 😊", "Go ⭐", "❤"],
    "second_person": ["You can.", "It is YOURS."],
    "contraction": ["I don't.", "It’s late.", "They'll come.", "we've"],
    "formal": ["However, it rains.", "It is important to rest.", "In addition, eat."],
    "long": ["one two three four five six"],
}
LACK = {
    "list": ["- only one", "a - b - c", "It was 1990. Then 1991. Good."],
    "exclamation": ["Yes."],
    "question": ["Why not."],
    "emoji": ["Nice :)", "5 < 6", "naïve — “quoted”"],
    "second_person": ["Youth is a house.", "We can."],
    "contraction": ["Anna's book", "the dogs' bowl", "do not"],
    "formal": ["How ever?", "Thusly", "The additional one"],
    "long": ["one two three", ""],
}


@pytest.mark.parametrize("name", get_args(Attribute))
def test_an_attribute_is_read_off_a_text(name):
    texts = [*HAVE[name], *LACK[name]]
    expected = [True] * len(HAVE[name]) + [False] * len(LACK[name])
    assert has((name,), texts, long=3).ravel().tolist() == expected


def test_every_attribute_of_the_configuration_can_be_read():
    assert {"long", *manner._READ} == set(get_args(Attribute))
    assert has((), ["a"], 0).shape == (1, 0)
    assert median_words(["a b", "a", "a b c d"]) == 2
    assert median_words([]) == 0


def test_a_taste_is_how_often_what_has_the_attribute_was_chosen():
    texts = [("p", text) for text in ("Yes!", "No.", "What?", "So!", "Or.")]
    pair = lambda *ids: np.array(ids, np.int32).reshape(-1, 2)  # noqa: E731
    choices = [
        [pair((0, 1), (3, 4)), pair((0, 2))],  # three times what exclaims; once, of one question, the other
        [pair((1, 0)), pair((2, 1), (0, 3))],  # both exclaim: that decides nothing
        [pair((1, 4)), pair((4, 1))],  # nothing to tell
    ]
    split = Split(["a", "b", "c"], make_table(choices, [0, 0, 0]))
    found = tastes(split, texts, ("exclamation", "question"), np.arange(3), long=9)
    np.testing.assert_allclose(found, [[4 / 5, 1 / 3], [1 / 3, 2 / 3], [np.nan, np.nan]])
    np.testing.assert_allclose(tastes(split, texts, ("question",), np.array([1]), 9), [[2 / 3]])


def test_thumbs_are_no_taste_and_all_of_a_list_counts():
    texts = [("p", "Yes!"), ("p", "No."), ("p", "So."), THUMB.text]
    liked = np.array([[0, 3], [0, 3]], np.int32)  # thumbs up for what exclaims
    of_three = np.array([[0, 1, 2]], np.int32)
    choices = [[liked, liked], [of_three, of_three[:0]]]
    split = Split(["a", "b"], make_table(choices, [0, 0]))
    found = tastes(split, texts, ("exclamation",), np.arange(2), long=9)
    np.testing.assert_allclose(found, [[np.nan], [3 / 4]])


def test_too_few_people_are_not_opposed():
    assert not opposed(np.array([[0.9], [0.1], [0.5]])).any()  # a third is one person
    assert not opposed(np.array([[0.9], [0.8], [0.7], [0.6], [0.9], [0.6]])).any()  # nobody wants the opposite


def test_movement_is_the_difference_between_opposed_people():
    side = np.array([[1, 1], [1, 0], [-1, 0], [-1, 0], [0, 0]])
    people = np.repeat(np.arange(5), 4)
    prompts = [f"p{i}" for i in range(4)] * 5
    found = np.zeros((20, 2), bool)
    found[:6, 0] = True  # six of the eight of those who want it
    found[8, 0] = True  # one of the eight of those who do not
    out = attribute_report(("list", "emoji"), found, side, people, prompts, 300, seed=0)
    moved = out["attributes"]["list"]["movement"]
    assert moved["mean"] == pytest.approx(6 / 8 - 1 / 8)
    assert moved["low"] < moved["mean"] < moved["high"] <= 1
    assert out["attributes"]["list"]["share"] == pytest.approx(7 / 20)
    assert out["attributes"]["emoji"]["movement"] is None  # nobody wants the opposite of an emoji
    assert out["attribute_movement"] == moved
    nothing = attribute_report(("list",), found[:, :1], np.zeros((5, 1), int), people, prompts, 10, seed=0)
    assert nothing["attribute_movement"] is None


def test_the_interval_holds_the_true_movement_as_often_as_it_says():
    """Of people and prompts that both matter: an interval over responses alone would be too narrow."""
    rng, inside = np.random.default_rng(1), []
    for trial in range(60):
        person, prompt = rng.normal(size=24), rng.normal(size=8)
        side = np.where(np.arange(24) % 2, 1, -1)
        people, asked = np.repeat(np.arange(24), 8), np.tile(np.arange(8), 24)
        z = 1.0 * side[people] + person[people] + 1.0 * prompt[asked] * side[people] + rng.normal(size=192)
        out = attribute_report(
            ("list",), (z > 0)[:, None], side[:, None], people, [str(i) for i in asked], 100, seed=trial
        )
        moved = out["attribute_movement"]
        # P(z > 0) of either side, over people, prompts and noise, whose variances add up to 3.
        true = 0.4363 * 1.0  # 2 Φ(1/√3) − 1
        inside.append(moved["low"] <= true <= moved["high"])
    assert np.mean(inside) > 0.85
