"""Buckets, batches and plans of padding: every row fits, little is padding, few programs, no memory of the past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fssa_jax.data import embedding_store
from fssa_jax.lm import text_encoder
from fssa_jax.ops.padding import (
    batch_rows,
    best_plan,
    bucket,
    cheapest,
    few_plans,
    filled_rows,
    fits,
    length_batches,
    padded_tokens,
    padding_share,
)

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40).map(lambda x: sorted(x, reverse=True))


@given(lengths, st.integers(1, 4))
def test_every_row_fits_and_more_groups_never_cost_more(rows, groups):
    plan = best_plan(rows, groups)
    assert sum(number for number, _ in plan) == len(rows)
    assert all(number > 0 for number, _ in plan)
    assert 1 <= len(plan) <= groups
    padded = np.repeat([length for _, length in plan], [number for number, _ in plan])
    assert (padded >= rows).all()
    assert (np.diff(padded) <= 0).all()
    assert fits(plan, rows)
    assert padded_tokens(plan) == padded.sum() <= padded_tokens(best_plan(rows, max(groups - 1, 1)))
    assert padded_tokens(plan) <= len(rows) * bucket(rows[0])


@given(lengths, lengths)
def test_a_plan_takes_exactly_the_rows_that_are_no_longer_than_it(ours, theirs):
    plan = best_plan(ours, 3)
    theirs = sorted(np.resize(theirs, len(ours)).tolist(), reverse=True)
    padded = np.repeat([length for _, length in plan], [number for number, _ in plan])
    assert fits(plan, theirs) == (padded >= theirs).all()


@given(st.lists(st.integers(1, 100), min_size=8, max_size=8), st.integers(0, 2**31))
def test_any_batch_finds_a_plan_in_a_short_menu(batch, seed):
    typical = -np.sort(-np.random.default_rng(seed).integers(1, 101, (20, 8)), axis=1)
    menu = few_plans(typical, groups=2, limit=100, most=3)
    assert 1 <= len(menu) <= 4
    batch = sorted(batch, reverse=True)
    plan = cheapest(menu, batch)
    assert fits(plan, batch)
    assert padded_tokens(plan) == min(padded_tokens(p) for p in menu if fits(p, batch))


def test_two_kinds_of_batches_get_a_plan_each():
    long, short = [96, 96, 96, 96, 40, 40, 40, 40], [40] * 8
    menu = few_plans(np.array([long, short] * 5), groups=2, limit=100)
    assert cheapest(menu, long) == ((4, 96), (4, 40))
    assert cheapest(menu, short) == ((8, 40),)
    assert cheapest(menu, [100] * 8) == ((8, 100),)  # nothing like it was among the typical ones


@pytest.mark.parametrize("number", [1, 2, 3, 7, 9])
def test_few_rows_are_cut_between_rows(number):
    assert sum(rows for rows, _ in best_plan(range(number, 0, -1), 4)) == number


def test_buckets_are_few_and_hold_every_length():
    sizes = [bucket(n) for n in range(1, 3000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 30
    assert max(size / n for n, size in enumerate(sizes, 1) if n >= 64) < 1.3


def test_padding_of_real_lengths_is_under_15_per_cent():
    """Lengths of chat responses are about log-normal; here the median is 180 tokens."""
    lengths = np.exp(np.random.default_rng(0).normal(5.2, 0.8, 5000)).astype(int) + 1
    assert padding_share(lengths.tolist()) < 0.15


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_have_little_padding_filling_included(devices):
    """As embedding cuts them, on an accelerator: lengths of statements and of arguments, in tokens."""
    budget = 16_384 * devices
    number = max(32 * budget // text_encoder._TYPICAL // embedding_store._SHARD, 1) * embedding_store._SHARD
    for median, spread in ((29, 0.4), (90, 0.45)):
        drawn = np.random.default_rng(0).normal(np.log(median), spread, number)
        lengths = np.clip(np.exp(drawn), 4, 256).astype(int)
        total = sum(
            size * filled_rows(len(rows), batch_rows(size, budget, devices), devices)
            for size, rows in length_batches(lengths.tolist(), budget, devices, 256)
        )
        assert 1 - lengths.sum() / total < 0.15


def test_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 300, 200).tolist()
    batches = length_batches(lengths, tokens=1024, multiple=2)
    assert sorted(np.concatenate([rows for _, rows in batches]).tolist()) == list(range(200))
    for size, rows in batches:
        assert all(lengths[r] <= size for r in rows)
        assert len(rows) * size <= max(1024, 2 * size)
    sizes = [size for size, _ in batches]
    assert sizes == sorted(sizes, reverse=True)


def test_no_padded_length_is_beyond_the_positions_of_the_model():
    """512 tokens are a bucket of 624, which a model of 512 positions does not have."""
    sizes = [size for size, _ in length_batches([512, 505, 300, 7], 1024, limit=512)]
    assert max(sizes) == 512
