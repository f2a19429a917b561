"""Pairs of responses that a reward model ranks: their distribution, and what stays as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fssa_jax.data.dataset import make_table, texts_of
from fssa_jax.data.ranked import ranked_pairs
from fssa_jax.types import ChoiceTable

PROMPTS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])


def table_of(rows, users=1, **more):
    """Every user's targets are `rows`; their context is 7 > 8."""
    context = np.array([[7, 8]])
    return make_table([[context, np.array(rows)]] * users, [0] * users, **more)


def test_the_draws_have_the_probabilities_of_best_and_least():
    worth = np.array([0.0, 1.0, -0.5, 0.3, *[0.0] * 6])
    users = 20_000
    # Text 3 occurs in nobody's choices, so it is no candidate.
    out = ranked_pairs(
        table_of([[0, 1], [1, 2]], users), PROMPTS, lambda users, ids: worth[ids], np.random.default_rng(0)
    )
    r = worth[:3]
    best, least = (np.exp(s * r) / np.exp(s * r).sum() for s in (1, -1))
    both = np.outer(best, least)
    first, last = r.argmax(), r.argmin()
    same = both.trace()
    np.fill_diagonal(both, 0.0)
    both[first, last] += same
    drawn = np.zeros((3, 3))
    np.add.at(drawn, (out.chosen[:, 1].ravel(), out.rejected[:, 1].ravel()), 1)
    drawn /= drawn.sum()
    np.testing.assert_allclose(drawn, both, atol=4 * np.sqrt(0.25 / (2 * users)))


def test_each_person_has_rewards_of_their_own_however_many_there_are():
    users = 100_003  # several calls, the last of them smaller
    rewards = lambda users, ids: 100.0 * ids * np.where(users % 2, 1.0, -1.0)[:, None]  # noqa: E731
    out = ranked_pairs(table_of([[0, 2], [5, 4]], users), PROMPTS, rewards, np.random.default_rng(0))
    assert out.chosen[1::2, 1].tolist() == [[2, 5]] * (users // 2)
    assert out.rejected[1::2, 1].tolist() == [[0, 4]] * (users // 2)
    assert out.chosen[::2, 1].tolist() == [[0, 4]] * (users - users // 2)


def test_choices_among_several_become_pairs_and_weights_stay():
    table = table_of([[0, 1, 3], [4, 5, -1]], weights=[[np.ones(1), np.array([0.5, 2.0])]])
    out = ranked_pairs(table, PROMPTS, lambda users, ids: 100.0 * ids, np.random.default_rng(0))
    assert out.others is None
    assert (out.chosen[0, 1].tolist(), out.rejected[0, 1].tolist()) == ([3, 5], [0, 4])
    np.testing.assert_array_equal(out.weight, table.weight)


def test_a_lone_response_and_thumbs_stay_and_equal_rewards_give_two_responses():
    prompts = np.array([0, 0, 1, 2, 3, 0])  # 2 has no other response to its prompt; 3 and 4 are thresholds
    rows = np.array([[0, 1], [2, 2], [5, 3], [4, 0]])
    table = make_table([[np.array([[0, 1]]), rows]], [0])
    out = ranked_pairs(table, prompts, lambda users, ids: 0.0 * ids, np.random.default_rng(0))
    assert (out.chosen[0, 1, 1:].tolist(), out.rejected[0, 1, 1:].tolist()) == ([2, 5, 4], [2, 3, 0])
    for seed in range(30):
        out = ranked_pairs(table, prompts, lambda users, ids: 0.0 * ids, np.random.default_rng(seed))
        assert out.chosen[0, 1, 0] != out.rejected[0, 1, 0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4), st.integers(0, 99))
def test_only_the_targets_change_and_only_within_their_prompts(rows, seed):
    rows = [pair for pair in rows if pair[0] != pair[1] and PROMPTS[pair[0]] == PROMPTS[pair[1]]]
    one = [np.array([[7, 8]]), np.array(rows, int).reshape(-1, 2)]
    other = [np.array([[0, 1], [0, 1]]), np.zeros((0, 2), int)]
    table = make_table([one, other], [0, 1])
    noise = np.random.default_rng(seed)
    out = ranked_pairs(table, PROMPTS, lambda users, ids: noise.normal(0, 3, ids.shape), noise)
    for name in ("chosen", "rejected"):
        before, after = getattr(table, name), getattr(out, name)
        np.testing.assert_array_equal(after[:, 0], before[:, 0])
        np.testing.assert_array_equal(after[:, 1, len(rows) :], before[:, 1, len(rows) :])
        assert (PROMPTS[after[0, 1, : len(rows)]] == PROMPTS[before[0, 1, : len(rows)]]).all()
    np.testing.assert_array_equal(out.count, table.count)
    np.testing.assert_array_equal(out.group, table.group)
    assert set(texts_of(out)) <= set(texts_of(table))
    assert (out.chosen[0, 1, : len(rows)] != out.rejected[0, 1, : len(rows)]).all()


def test_a_table_without_targets_stays():
    empty = ChoiceTable(np.zeros((0, 2, 1), int), np.zeros((0, 2, 1), int), np.zeros((0, 2), int), np.zeros(0, int))
    out = ranked_pairs(empty, PROMPTS, lambda users, ids: pytest.fail("nobody to rank for"), np.random.default_rng(0))
    assert out.chosen.shape == (0, 2, 1)
