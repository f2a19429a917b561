"""Features of manner: what two texts of the same content differ in, kept through a round trip."""

import numpy as np
import pytest

from fssa_jax.config import Rows
from fssa_jax.data import manner
from fssa_jax.data.dataset import load, save
from fssa_jax.data.features import NumberFeaturiser
from fssa_jax.data.featurise import features_of_texts
from fssa_jax.data.manner import MannerFeaturiser, marks

TEXTS = [
    ("How?", f"{opening} boil the egg{end}")
    for opening in ("You should", "- First,\n- then", "It's easy,", "Furthermore, one may", "I WOULD")
    for end in (".", "!", "? 😊", " for 8 minutes, in hot water.")
]


def test_every_mark_is_told_from_none():
    plain = np.array(marks("boil the egg"))
    for text in (
        "boil the egg!",
        "boil the egg?",
        "- boil\n- the egg",
        "boil the 😊 egg",
        "boil your egg",
        "boil my egg",
    ):
        assert np.abs(np.array(marks(text)) - plain).max() > 0.5
    assert np.isfinite(marks("")).all()
    assert len(marks("")) == len(plain)


def test_columns_weigh_as_much_as_the_features_of_texts(tmp_path):
    known = np.arange(len(TEXTS) - 4)
    data = Rows(manner=True, quantities=False, components=5)
    featuriser, features = features_of_texts(data, False, TEXTS, known, None)
    plain, without = features_of_texts(Rows(quantities=False, components=5), False, TEXTS, known, None)
    d = without.shape[1]
    np.testing.assert_array_equal(features[:, :d], without)
    own = features[known, d:]
    assert own.shape[1] > 5
    np.testing.assert_allclose(own.var(0).sum(), without[known].var(0).sum(), rtol=0.05)
    np.testing.assert_allclose(own.mean(0), 0, atol=0.05)
    assert isinstance(featuriser, MannerFeaturiser)
    np.testing.assert_allclose(featuriser.transform(TEXTS[-3:]), features[-3:], atol=1e-6)
    wild = featuriser.transform([("How?", "!" * 1000)])
    assert np.abs(wild[:, d:]).max() < 20
    featuriser.save(tmp_path)
    again = MannerFeaturiser.load(tmp_path, plain)
    np.testing.assert_allclose(again.transform(TEXTS), features, atol=1e-6)


def test_texts_that_are_all_alike_have_no_such_columns():
    texts = [("", "1.5"), ("", "2.5")]
    assert isinstance(
        MannerFeaturiser.of(NumberFeaturiser(), np.array([[1.5], [2.5]]), texts, np.arange(2)), NumberFeaturiser
    )


def test_a_data_set_with_them_is_read_back(tmp_path):
    from tests import tiny

    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows())
    config = tiny.config(rows)
    config.data.manner = True
    dataset = tiny.load_dataset(config)
    save(dataset, tmp_path / "data")
    again = load(tmp_path / "data")
    np.testing.assert_allclose(again.featuriser.transform(dataset.texts[:5]), dataset.features[:5], atol=1e-5)


@pytest.mark.parametrize("name", ["emoji", "list", "contraction"])
def test_counts_agree_with_what_is_there(name):
    for _, text in TEXTS:
        assert (manner._COUNTED[name](text) > (name == "list")) == manner.has((name,), [text], 9)[0, 0]
