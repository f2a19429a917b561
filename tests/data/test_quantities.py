"""Numbers in texts: what they are numbers of, and columns that hold for new texts and after saving."""

import numpy as np
import pytest

from fssa_jax.config import Rows
from fssa_jax.data import dataset as datasets
from fssa_jax.data.dataset import featuriser_of_texts, width_of_texts
from fssa_jax.data.features import TfidfFeaturiser
from fssa_jax.data.quantities import QuantityFeaturiser, quantities
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.files import write_text

RNG = np.random.default_rng(3)
PRICES, HOURS = RNG.integers(10, 60, 40), RNG.integers(1, 9, 40)
TEXTS = [
    ("", f"The {word} seat costs {price} euros and takes {hours} hour{'' if hours == 1 else 's'}.")
    for price, hours, word in zip(PRICES, HOURS, ["red", "blue", "green", "white"] * 10, strict=True)
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24.50 guilders", {"guilder": 24.5}),
        ("1 change, 2 changes", {"change": 1.0, "change 2": 2.0}),
        ("1,020,000 people; 1,02 of it", {"people": 1020000.0}),  # the second is not written in a way that is certain
        ("$15 an hour, €3", {"$": 15.0, "€": 3.0}),
        ("15 $ or 20% or 21 %", {"$": 15.0, "%": 20.0, "% 2": 21.0}),
        ("Class: 2.", {"class": 2.0}),
        ("7", {"": 7.0}),
        ("-5 °C and −3.5 °C", {"°": -5.0, "° 2": -3.5}),
        ("a 30-minute walk", {"minute": 30.0}),
        ("version 1.2.3 of B2B", {}),
        ("24元的票", {"元": 24.0}),
        ("a boss of 3 classes, 1 class and 2 bosses", {"classe": 3.0, "class": 1.0, "bosse": 2.0}),
        ("9" * 400 + " stars, 3 stars", {"star": 3.0}),
        ("no number", {}),
        ("Price: 24\nTime: 30\nChanges: 2", {"price": 24.0, "time": 30.0, "change": 2.0}),
        ("Price: 24 Time = 30 min", {"price": 24.0, "time": 30.0}),
        ("24 minutes\n30\tminutes\n7\xa0minutes", {"minute": 24.0, "minute 2": 30.0, "minute 3": 7.0}),
        ("24\nminutes", {"": 24.0}),
        ("1. Mix 3 eggs.\n 2) Fry them.\n", {"egg": 3.0}),
        ("2,5 hours", {}),
    ],
)
def test_a_quantity_is_a_number_and_its_unit(text, expected):
    assert quantities(text) == expected


@pytest.fixture(scope="module")
def featuriser():
    of_texts = TfidfFeaturiser.fit(TEXTS, components=5)
    return QuantityFeaturiser.of(of_texts, of_texts.transform(TEXTS), TEXTS, np.arange(30))


def test_columns_are_the_standardised_numbers_of_common_units(featuriser):
    assert featuriser.units == ["euro", "hour"]
    features = featuriser.transform(TEXTS)
    assert features.shape == (40, 6 + 2)
    for column, numbers in zip(features[:30, 6:].T, (PRICES, HOURS), strict=True):
        assert np.corrcoef(column, numbers[:30])[0, 1] == pytest.approx(1)
        assert column.mean() == pytest.approx(0, abs=1e-4)
    total = features[:30, :6].var(0).sum()
    np.testing.assert_allclose(features[:30, 6:].var(0), 100 * total / 2, rtol=1e-3)


def test_a_text_without_a_quantity_is_at_its_mean_and_a_huge_number_is_bounded(featuriser):
    without, huge, extreme = featuriser.transform([("", "soup"), ("", f"{10**9} euros"), ("", f"{10**15} euros")])
    np.testing.assert_allclose(without[6:], 0, atol=1e-5)
    np.testing.assert_array_equal(huge[6], extreme[6])
    assert huge[6] == pytest.approx(5 * featuriser.transform(TEXTS[:30])[:, 6].std(), rel=1e-3)


def test_a_rare_unit_has_a_column_that_says_where_it_is_and_less_weight():
    texts = [("", f"{i} apples, {i % 7} pears" if i % 5 == 0 else f"{i} apples") for i in range(60)]
    plain = np.random.default_rng(0).standard_normal((60, 3))
    found = QuantityFeaturiser.of(None, plain, texts, np.arange(60))
    assert [(column["unit"], column["what"]) for column in found.columns] == [
        ("apple", "number"),
        ("pear", "number"),
        ("pear", "there"),
    ]
    columns = found.extended(plain, texts)[:, 3:]
    assert set(columns[:, 2].round(2)) == {columns[0, 2].round(2), columns[1, 2].round(2)}
    total = plain.var(0).sum()
    np.testing.assert_allclose(columns[:, 0].var(), 100 * total / 3, rtol=1e-5)
    np.testing.assert_allclose(columns[:, 1:].var(0), total / 3, rtol=1e-5)  # like one of three features


def test_units_of_few_texts_and_numbers_that_never_differ_have_no_columns():
    few = [("", f"{i} apples" if i < 5 else "soup") for i in range(60)]
    same = [("", "19.95 apples")] * 60
    for texts in (few, same):
        assert QuantityFeaturiser.of("the featuriser", np.ones((60, 2)), texts, np.arange(60)) == "the featuriser"


def test_numbers_over_several_orders_are_compared_by_their_logarithms():
    texts = [("", f"{10**i} euros") for i in range(6)] * 3
    found = QuantityFeaturiser.of(None, np.eye(18), texts, np.arange(18))
    steps = np.diff(found.extended(np.eye(18), texts)[:6, 18])
    np.testing.assert_allclose(steps[1:], steps[1:].mean(), rtol=0.1)


@pytest.mark.parametrize("numbers", [True, False])
def test_rows_have_quantities_and_a_saved_data_set_keeps_them(tmp_path, numbers):
    choices = [
        f'{{"user_id": "{u}", "prompt": "p", "response_a": "{a[1]}", "response_b": "{b[1]}", "choice": 1}}'
        for u in range(9)
        for a, b in zip(TEXTS[u::2][:8], TEXTS[u + 1 :: 2][:8], strict=True)
    ]
    thumb = '{"user_id": "3", "prompt": "p", "response": "a seat of 5 euros and 9 hours", "label": true}'
    file = tmp_path / "rows.jsonl"
    write_text(file, "\n".join([*choices, thumb]))
    dataset = rows_dataset(Rows(path=str(file), features="tfidf", components=4, quantities=numbers))
    width = 4 + 1 + 2 * numbers + 1  # the last is the threshold of thumbs
    assert dataset.features.shape[1] == width
    assert width_of_texts(dataset) == 4 + 1
    assert isinstance(featuriser_of_texts(dataset.featuriser), TfidfFeaturiser)
    datasets.save(dataset, tmp_path / "prepared")
    again = datasets.load(tmp_path / "prepared").featuriser
    new = [("p", "a purple seat of 33 euros and 2 hours"), *dataset.texts[:3]]
    np.testing.assert_array_equal(again.transform(new), dataset.featuriser.transform(new))
    np.testing.assert_allclose(again.transform(new)[1:], dataset.features[:3], rtol=1e-5, atol=1e-5)
