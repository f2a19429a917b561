"""The styles benchmark: known people who choose by BTL, and no text of the test prompts in training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fssa_jax.config import Styles, TextEncoder
from fssa_jax.data import featurise
from fssa_jax.data.benchmarks import styles
from fssa_jax.data.build import styles_dataset
from fssa_jax.data.dataset import SPLITS
from fssa_jax.data.features import EncoderFeaturiser
from tests.mistakes import complaint


@pytest.fixture(scope="module")
def texts():
    return styles.texts()


@pytest.fixture(scope="module")
def data():
    return styles_dataset(Styles(train_users=300, eval_users=101), context=10, targets=12)


def texts_of(split, pool: int) -> np.ndarray:
    rows = split.table.count[0, pool]
    return np.concatenate([split.table.chosen[:, pool, :rows], split.table.rejected[:, pool, :rows]], axis=1)


def test_features_may_be_those_of_a_language_model(monkeypatch, texts):
    """Centred and scaled by the texts of training prompts alone."""
    calls = []

    class Recorded(EncoderFeaturiser):
        def fit_transform(self, texts, train, scratch):
            calls.append((self._settings, train, scratch))
            return np.zeros((len(texts), 3), np.float32)

    monkeypatch.setattr(featurise, "EncoderFeaturiser", Recorded)
    text_encoder = TextEncoder(name="base", pool="response", layer=1)
    config = Styles(train_users=10, eval_users=4, features="encoder", text_encoder=text_encoder)
    made = styles_dataset(config, context=3, targets=2, scratch=Path("scratch"))
    assert made.features.shape == (len(made.texts), 3)
    settings, train, scratch = calls[0]
    assert (settings.encoder, settings.pool, settings.layer, scratch) == ("base", "response", 1, Path("scratch"))
    _, _, prompt_of = texts
    assert set(prompt_of[train]) == set(styles.prompt_splits()["train"])
    wrong = dataclasses.replace(config, features="given")
    assert "styles makes its own texts" in complaint(styles_dataset, wrong, 3, 2)


def test_texts_are_distinct_and_every_style_answers_every_prompt(texts):
    pairs, style_of, prompt_of = texts
    assert len(pairs) == len(set(pairs)) == 40 * 4 * 32 * 2
    assert len({response for _, response in pairs}) > 5000
    for prompt in range(160):
        of_prompt = {pairs[i][0] for i in np.flatnonzero(prompt_of == prompt)}
        assert len(of_prompt) == 1
        _, count = np.unique(style_of[prompt_of == prompt], axis=0, return_counts=True)
        assert count.tolist() == [2] * 32


def test_the_prior_is_a_distribution_that_knows_no_side():
    weights, log_prior = styles.PEOPLE.every()
    prior = {tuple(w): p for w, p in zip(weights.tolist(), np.exp(log_prior), strict=True)}
    assert len(prior) == 243
    assert sum(prior.values()) == pytest.approx(1, abs=1e-6)
    assert all(prior[tuple(-x for x in w)] == pytest.approx(p) for w, p in prior.items())
    # By hand: four attributes minded, one not.
    assert prior[1, -1, 0, 1, 1] == pytest.approx(0.2 * 0.4**4)


def test_pairs_are_of_one_prompt_and_two_styles(texts):
    _, style_of, prompt_of = texts
    prompts = np.array([3, 77, 159])
    pairs = styles.draw_pairs(np.random.default_rng(0), prompts, prompt_of, (50, 40))
    assert pairs.shape == (50, 40, 2)
    assert set(np.unique(prompt_of[pairs])) == set(prompts)
    np.testing.assert_array_equal(prompt_of[pairs[..., 0]], prompt_of[pairs[..., 1]])
    assert (style_of[pairs[..., 0]] != style_of[pairs[..., 1]]).any(-1).all()


def test_choices_follow_btl(texts):
    _, style_of, prompt_of = texts
    rng = np.random.default_rng(0)
    weights = np.array([[1, -1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    pairs = styles.draw_pairs(rng, np.arange(160), prompt_of, (3, 20_000))
    chosen, rejected = styles.PEOPLE.choose(rng, weights, pairs, style_of)
    np.testing.assert_array_equal(np.sort(np.stack([chosen, rejected], -1)), np.sort(pairs))
    # r(y) = scale · Σ w x with x = ±½, so a reward difference is scale times a whole number.
    reward = 2.5 * np.einsum("ua,una->un", weights, style_of[pairs[..., 0]] - 0.5)
    delta = reward - 2.5 * np.einsum("ua,una->un", weights, style_of[pairs[..., 1]] - 0.5)
    surprise, bins = 0.0, 0
    for user in range(3):
        for d in np.unique(delta[user]):
            first = chosen[user][delta[user] == d] == pairs[user][delta[user] == d, 0]
            p = 1 / (1 + np.exp(-d))
            surprise += (first.sum() - len(first) * p) ** 2 / (len(first) * p * (1 - p))
            bins += 1
    assert bins == 7 + 1 + 11
    assert surprise < bins + 4 * np.sqrt(2 * bins)


def test_no_text_of_one_split_or_pool_occurs_in_another(data, texts):
    pairs, _, prompt_of = texts
    assert data.texts == pairs
    prompts, responses = [], []
    for name in SPLITS:
        for pool in (0, 1):
            ids = texts_of(data.splits[name], pool)
            prompts.append(set(prompt_of[ids].ravel()))
        responses.append({pairs[i][1] for pool in (0, 1) for i in texts_of(data.splits[name], pool).ravel()})
    for i, mine in enumerate(prompts):
        assert all(not mine & other for other in prompts[:i])
    assert not responses[2] & responses[0]
    assert not responses[1] & responses[0]


@pytest.mark.parametrize("name", ["val", "test"])
def test_held_out_neighbours_want_the_opposite_of_the_same_pairs(data, name):
    weights, _ = styles.PEOPLE.every()
    table = data.splits[name].table
    mine = weights[table.group]
    np.testing.assert_array_equal(mine[1::2], -mine[0:-1:2])
    ids = np.sort(np.stack([table.chosen[:, 1, :12], table.rejected[:, 1, :12]], -1))
    np.testing.assert_array_equal(ids[1::2], ids[0:-1:2])
    assert (ids[2::2] != ids[0:-1:2]).any()
    assert table.count.tolist() == [[10, 12]] * 101


def test_users_are_named_by_what_they_mind(data):
    weights, _ = styles.PEOPLE.every()
    assert styles.PEOPLE.name(np.array([1, 0, -1, 0, 0])) == "+long −emoji"
    assert styles.PEOPLE.name(np.zeros(5)) == "indifferent"
    split = data.splits["test"]
    names = [user.split(": ")[1] for user in split.users]
    assert (
        names
        == [styles.PEOPLE.name(weights[g]) for g in split.table.group]
        == [data.groups[g] for g in split.table.group]
    )


def test_the_truth_explains_the_choices(data):
    """The mean log-likelihood of the choices is minus their mean entropy, as it is only for the true rewards."""
    table, rewards = data.splits["train"].table, data.truth.rewards
    person = table.group[:, None]
    delta = rewards[table.chosen[:, 0, :10], person] - rewards[table.rejected[:, 0, :10], person]
    p = 1 / (1 + np.exp(-delta))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert np.log(p).mean() == pytest.approx(-entropy.mean(), abs=0.03)
    assert entropy.mean() < 0.5


@pytest.mark.parametrize("split", ["val", "test"])
def test_styles_can_be_read_off_the_features_of_new_topics(data, texts, split):
    _, style_of, prompt_of = texts
    rng, prompts = np.random.default_rng(1), styles.prompt_splits()

    def differences(name):
        pairs = styles.draw_pairs(rng, prompts[name], prompt_of, (5000,))
        sides = style_of[pairs].astype(np.float32)
        return data.features[pairs[:, 0]] - data.features[pairs[:, 1]], sides[:, 0] - sides[:, 1]

    x, y = differences("train")
    readout = np.linalg.lstsq(x, y, rcond=None)[0]
    x, y = differences(split)
    right = np.sign(x @ readout) == y
    for a, name in enumerate(styles.ATTRIBUTES):
        assert right[y[:, a] != 0, a].mean() > 0.97, name
