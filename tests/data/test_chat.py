"""`chat`: attributes that people can want, people who choose by them, and splits that share no prompt."""

import numpy as np
import pytest

from fssa_jax.config import Chat
from fssa_jax.data.benchmarks import chat, people_of
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import texts_of
from fssa_jax.evaluate.quality import loops


@pytest.fixture(scope="module")
def known():
    return chat.chat_texts()


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(Chat(train_users=60, eval_users=40), 6, 8)


def test_every_attribute_is_common_and_never_certain(known):
    shares = known.found.mean(0)
    assert (shares > 0.15).all()
    assert (shares < 0.85).all()
    agree = np.corrcoef(known.found.T.astype(float)) - np.eye(len(shares))
    assert np.abs(agree).max() < 0.6


def test_there_are_many_prompts_and_responses_and_some_topics_are_new(known):
    assert len(known.splits["train"]) + len(known.splits["val"]) + len(known.splits["test"]) >= 120
    assert len(known.splits["test"]) >= 24
    sizes = np.bincount(known.prompt)
    assert sizes.min() >= 12
    trained = {known.topics[i] for i in known.splits["train"]}
    new = [i for i in known.splits["test"] if known.topics[i] not in trained]
    assert len(new) >= 12
    assert len(set(known.texts)) == len(known.texts)
    assert not any(loops(response) for _, response in known.texts)
    assert chat._FILE.stat().st_size < 1.5e6
    assert 0.1 < known.unfinished.mean() < 0.6


def test_context_and_targets_share_no_prompt_and_splits_no_text(known, dataset):
    prompt_of, seen = known.prompt, {}
    for name, split in dataset.splits.items():
        table = split.table
        for user in range(len(split.users)):
            mine = np.asarray(table.mask)[user]
            context, targets = (set(prompt_of[np.asarray(table.chosen)[user, p][mine[p]]].tolist()) for p in (0, 1))
            assert not context & targets
        chosen, rejected = (prompt_of[np.asarray(side)] for side in (table.chosen, table.rejected))
        real = np.asarray(table.mask)
        assert (chosen[real] == rejected[real]).all()
        assert (known.found[np.asarray(table.chosen)] != known.found[np.asarray(table.rejected)]).any(-1)[real].all()
        seen[name] = {int(prompt_of[i]) for i in texts_of(table)}
        assert seen[name] <= set(known.splits[name].tolist())
    halves = [set(prompt_of[texts_of(dataset.splits["test"].table, pool)].tolist()) for pool in (0, 1)]
    assert not halves[0] & halves[1]  # the controls give people one another's contexts


def test_neighbours_want_opposites_and_judge_the_same(dataset):
    weights, log_prior = chat.PEOPLE.every()
    split = dataset.splits["test"]
    mine = weights[np.asarray(split.table.group)]
    np.testing.assert_array_equal(mine[0::2], -mine[1::2])
    pairs = np.sort(np.stack([split.table.chosen, split.table.rejected], -1), -1)[:, 1]
    np.testing.assert_array_equal(pairs[0::2], pairs[1::2])
    np.testing.assert_allclose(np.exp(log_prior).sum(), 1, rtol=1e-5)
    assert len(weights) == 3**6


def test_people_choose_by_their_rewards(known, dataset):
    """The chosen response has the larger true reward as often as Bradley-Terry-Luce says."""
    table, rewards = dataset.splits["train"].table, dataset.truth.rewards
    group = np.asarray(table.group)[:, None, None]
    margin = rewards[np.asarray(table.chosen), group] - rewards[np.asarray(table.rejected), group]
    margin = margin[np.asarray(table.mask)]
    expected = 1 / (1 + np.exp(-np.abs(margin)))
    assert abs((margin > 0).mean() + 0.5 * (margin == 0).mean() - expected.mean()) < 4 * 0.5 / np.sqrt(margin.size)
    assert (margin == 0).mean() < 0.3


def test_the_attributes_of_what_is_written_are_those_of_the_texts(known):
    people = people_of(Chat())
    for i in range(0, len(known.texts), 97):
        found, well = people.read(*known.texts[i])
        np.testing.assert_array_equal(found, known.found[i])
        assert well
    assert not people.read("How?", "")[1]
