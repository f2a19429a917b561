"""The paper's synthetic task: its rewards, its published pairs, and choices without noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.config import Synthetic
from fssa_jax.data.benchmarks import synthetic
from fssa_jax.data.build import synthetic_dataset
from fssa_jax.data.dataset import SPLITS
from fssa_jax.data.features import NumberFeaturiser
from fssa_jax.errors import UserError


def disagreement(pairs: np.ndarray) -> float:
    """The share of pairs that the two kinds order differently."""
    prefers_first = [np.diff(np.asarray(synthetic.reward(jnp.asarray(pairs), kind)))[:, 0] < 0 for kind in (0, 1)]
    return (prefers_first[0] != prefers_first[1]).mean()


def sides(table, pool: int) -> np.ndarray:
    """Both texts (users, rows, 2) of every pair, whoever won."""
    rows = table.count[0, pool]
    return np.sort(np.stack([table.chosen[:, pool, :rows], table.rejected[:, pool, :rows]], -1))


def assert_choices_follow_the_reward(values, table, first_id=0):
    for kind in (0, 1):
        mine = table.group == kind
        assert mine.any()
        for pool in (0, 1):
            rows = table.count[0, pool]
            y = [np.asarray(values)[side[mine, pool, :rows] - first_id, 0] for side in (table.chosen, table.rejected)]
            won, lost = (np.asarray(synthetic.reward(jnp.asarray(side), kind)) for side in y)
            assert (won >= lost).all()


def test_reward_values():
    y = jnp.array([0.0, 0.25, 0.49, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(synthetic.reward(y, 0), [0, 0.25, 0.49, 1, 1.5, 2], rtol=1e-6)
    np.testing.assert_allclose(synthetic.reward(y, 1), [0, 0.25, 0.49, 0.5, 0.25, 0], rtol=1e-6)


def test_the_kinds_disagree_on_half_of_fresh_pairs():
    pairs = np.random.default_rng(0).random((20_000, 2)).astype(np.float32)
    assert disagreement(pairs) == pytest.approx(0.5, abs=0.015)


def test_the_published_pairs():
    sizes = {name: len(synthetic.published_pairs(name)) for name in ("train", "val", "test")}
    assert sum(sizes.values()) == 20_000
    test = synthetic.published_pairs("test")
    assert test.shape == (1936, 2)
    assert disagreement(test.astype(np.float32)) == pytest.approx(0.469, abs=5e-4)
    np.testing.assert_array_equal(test, synthetic.published_pairs("test"))


def test_episodes_of_fresh_users():
    draw = jax.jit(jax.vmap(lambda key: synthetic.draw_episode(key, max_context=4, max_targets=6)))
    episodes = draw(jax.random.split(jax.random.key(0), 2000))
    assert episodes.context.chosen.shape == (2000, 4, 1)
    assert episodes.targets.chosen.shape == (2000, 6, 1)
    kinds = np.asarray(episodes.user)
    np.testing.assert_array_equal(kinds, episodes.group)
    assert kinds.mean() == pytest.approx(0.5, abs=0.05)
    for part in (episodes.context, episodes.targets):
        for kind in (0, 1):
            won, lost = (
                np.asarray(synthetic.reward(side[kinds == kind], kind)) for side in (part.chosen, part.rejected)
            )
            assert (won >= lost).all()
    mask = np.asarray(episodes.context.mask)
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()
    np.testing.assert_allclose(np.bincount(mask.sum(1), minlength=5) / 2000, 0.2, atol=0.04)
    assert np.asarray(episodes.targets.mask).all()
    y = np.concatenate([np.asarray(part).ravel() for part in (episodes.targets.chosen, episodes.targets.rejected)])
    assert (y.min() >= 0, y.max() < 1) == (True, True)
    np.testing.assert_allclose(np.histogram(y, 4, (0, 1))[0] / y.size, 0.25, atol=0.015)


def test_episodes_of_a_fixed_split_show_its_pairs_alone():
    pairs = np.random.default_rng(0).random((50, 2)).astype(np.float32)
    draw = jax.jit(jax.vmap(lambda key: synthetic.draw_episode(key, jnp.asarray(pairs), max_context=4, max_targets=6)))
    episodes = draw(jax.random.split(jax.random.key(0), 200))
    both = np.concatenate([np.stack([c.chosen, c.rejected], -1) for c in (episodes.context, episodes.targets)], axis=1)
    shown = np.unique(np.sort(both.reshape(-1, 2), axis=1), axis=0)
    np.testing.assert_array_equal(shown, np.unique(np.sort(pairs, axis=1), axis=0))


@pytest.mark.parametrize("users", [6, 7])
def test_fresh_neighbours_are_of_both_kinds_and_share_targets(users):
    values, table = synthetic.fresh_table(np.random.default_rng(0), users, context=3, targets=50, first_id=100)
    assert table.group.tolist() == [0, 1, 0, 1, 0, 1, 0][:users]
    assert table.count.tolist() == [[3, 50]] * users
    assert values.shape == (users * 3 * 2 + (users + 1) // 2 * 50 * 2, 1)
    context, targets = sides(table, 0), sides(table, 1)
    even = users // 2 * 2
    np.testing.assert_array_equal(targets[:even:2], targets[1:even:2])
    assert len(np.unique(context)) == context.size
    assert len(np.unique(targets[::2])) == targets[::2].size
    assert np.unique(np.concatenate([context.ravel(), targets.ravel()])).tolist() == list(range(100, 100 + len(values)))
    assert_choices_follow_the_reward(values, table, first_id=100)
    assert 0.3 < (table.chosen[0, 1] != table.chosen[1, 1]).mean() < 0.7


@pytest.mark.parametrize("users", [1, 5, 6])
def test_a_published_user_sees_every_pair_once(users):
    pairs = synthetic.published_pairs("val")[:60]
    values, table = synthetic.published_table(np.random.default_rng(0), pairs, users, 20, 30, first_id=10)
    np.testing.assert_allclose(values.reshape(-1, 2), pairs, rtol=1e-6)
    context, targets = sides(table, 0), sides(table, 1)
    for u in range(users):
        seen = np.concatenate([context[u], targets[u]]) - 10
        assert (seen[:, 1] == seen[:, 0] + 1).all()
        assert (seen[:, 0] % 2 == 0).all()
        assert len(np.unique(seen)) == seen.size
    even = users // 2 * 2
    np.testing.assert_array_equal(targets[:even:2], targets[1:even:2])
    assert table.group.tolist() == [0, 1, 0, 1, 0, 1][:users]
    if users > 1:
        assert_choices_follow_the_reward(values, table, first_id=10)
        assert not np.array_equal(context[0], context[1])


@pytest.mark.parametrize("published", [False, True])
def test_the_data_set_looks_up_the_right_values(published):
    settings = Synthetic(published=published, train_users=6, eval_users=4)
    data = synthetic_dataset(settings, context=3, targets=5)
    assert {name: len(data.splits[name].users) for name in SPLITS} == {"train": 6, "val": 4, "test": 4}
    assert len(data.texts) == len(data.features) == len(data.truth.rewards)
    seen = []
    for name in SPLITS:
        table = data.splits[name].table
        assert_choices_follow_the_reward(data.features, table)
        seen.append(set(sides(table, 0).ravel()) | set(sides(table, 1).ravel()))
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    np.testing.assert_allclose(data.featuriser.transform(data.texts), data.features, atol=1e-6)
    # On the scale of the truth every choice is certain, but for ties within rounding.
    table, person = data.splits["test"].table, data.splits["test"].table.group[:, None]
    rewards = data.truth.rewards
    assert (rewards[table.chosen[:, 1], person] - rewards[table.rejected[:, 1], person]).min() > 10


def test_a_response_that_is_no_number_is_an_error():
    featuriser = NumberFeaturiser()
    assert featuriser.transform([("", "0.5"), ("", "1")]).tolist() == [[0.5], [1.0]]
    assert featuriser.transform([]).shape == (0, 1)
    with pytest.raises(UserError, match="numbers"):
        featuriser.transform([("", "half")])
