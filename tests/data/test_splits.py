"""Held-out users, and pools of a user's choices that share no text."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fssa_jax.data.splits import disjoint_pools, split_users

EDGES = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda e: e[0] != e[1]), min_size=1)


def pools_of(edges, seed=0):
    return disjoint_pools(np.array(edges, np.int32), np.random.default_rng(seed))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text(max_size=5), min_size=3, max_size=60), st.integers(0, 3), st.randoms())
def test_splits_do_not_depend_on_the_order_of_users(users, seed, shuffler):
    users = sorted(users)
    shuffled = shuffler.sample(users, len(users))
    split = split_users(users, seed)
    assert split == split_users(shuffled, seed)
    assert set(split) == set(users)
    assert set(split.values()) == {"train", "val", "test"}


def test_splits_are_80_10_10_and_the_seed_counts():
    users = [f"user {i}" for i in range(1000)]
    first, second = split_users(users, 0), split_users(users, 1)
    assert Counter(first.values()) == {"train": 800, "val": 100, "test": 100}
    assert first == split_users(users, 0)
    test = [{u for u in users if split[u] == "test"} for split in (first, second)]
    assert len(test[0] & test[1]) < 50


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_users_to_hold_out_all_train(count):
    assert set(split_users([str(i) for i in range(count)], 0).values()) == {"train"}


@settings(max_examples=200, deadline=None)
@given(EDGES, st.integers(0, 5))
def test_pools_share_no_text_and_lose_only_rows_across(edges, seed):
    pool = pools_of(edges, seed)
    assert pool.shape == (len(edges),)
    assert set(pool.tolist()) <= {-1, 0, 1}
    texts = [{t for edge, p in zip(edges, pool, strict=True) if p == side for t in edge} for side in (0, 1)]
    assert not texts[0] & texts[1]
    for edge, p in zip(edges, pool, strict=True):
        assert p >= 0 or not any(set(edge) <= side for side in texts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.integers(0, 5))
def test_components_without_a_majority_lose_no_row_and_balance(sizes, seed):
    edges = [(100 * c, 100 * c + i + 1) for c, size in enumerate(sizes) for i in range(size)]
    random.Random(seed).shuffle(edges)
    pool = pools_of(edges, seed)
    if max(sizes) <= 0.6 * sum(sizes):
        assert (pool >= 0).all()
        assert set(pool.tolist()) == {0, 1}
    for c in range(len(sizes)):
        kept = {p for (a, _), p in zip(edges, pool.tolist(), strict=True) if a == 100 * c and p >= 0}
        assert len(kept) <= 1


@pytest.mark.parametrize("sizes", [(6, 6), (6, 4), (4, 6)])
def test_two_components_lose_no_row(sizes):
    edges = [(100 * c + i, 100 * c + i + 1) for c in (0, 1) for i in range(sizes[c])]
    assert sorted(Counter(pools_of(edges).tolist()).values()) == sorted(sizes)


def test_one_chain_is_cut_once():
    edges = [(i, i + 1) for i in range(40)]
    for seed in range(5):
        count = Counter(pools_of(edges, seed).tolist())
        assert count[-1] <= 2
        assert min(count[0], count[1]) >= 10


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=4, unique=True), min_size=1), st.integers(0, 3))
def test_pools_of_choices_among_several_share_no_text(choices, seed):
    responses = np.full((len(choices), 4), -1, np.int32)
    for i, choice in enumerate(choices):
        responses[i, : len(choice)] = choice
    pool = disjoint_pools(responses, np.random.default_rng(seed))
    texts = [{t for choice, p in zip(choices, pool, strict=True) if p == side for t in choice} for side in (0, 1)]
    assert not texts[0] & texts[1]
    for choice, p in zip(choices, pool, strict=True):
        assert p >= 0 or not any(set(choice) <= side for side in texts)
