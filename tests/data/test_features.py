"""Features: TF-IDF that survives a round trip, and vectors that are checked before they are used."""

import gzip
import json

import numpy as np
import pytest

from fssa_jax.data import featurise
from fssa_jax.data.features import Featuriser, GivenFeaturiser, TfidfFeaturiser, find_vectors, read_vectors
from tests.mistakes import complaint, outcome

WORDS = ["bread", "rice", "soup", "😊", "!", "slow", "fast", "dough", "crust"]
RNG = np.random.default_rng(0)
TEXTS = [(f"prompt {i % 3}", " ".join(RNG.choice(WORDS, RNG.integers(2, 12)))) for i in range(60)]
NEW = [("", "bread rice 😊😊 zebra"), ("other prompt", "soup"), ("", ""), ("", "zebra quagga")]
KNOWN = [("p", "a"), ("p", "b"), ("q", "a")]


@pytest.fixture(scope="module")
def tfidf():
    return TfidfFeaturiser.fit(TEXTS, components=5)


def test_training_features_are_standardised(tfidf):
    features = tfidf.transform(TEXTS)
    assert isinstance(tfidf, Featuriser)
    assert features.shape == (60, 6)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    assert (features.std(0) < 1.001).all()
    assert features.std(0).max() == pytest.approx(1, abs=1e-3)


def test_a_saved_featuriser_gives_the_same_features_for_new_texts(tfidf, tmp_path):
    tfidf.save(tmp_path)
    loaded = TfidfFeaturiser.load(tmp_path)
    np.testing.assert_array_equal(loaded.transform(NEW + TEXTS), tfidf.transform(NEW + TEXTS))


def test_nothing_is_pickled(tfidf, tmp_path):
    tfidf.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tfidf.json", "tfidf.npz"]
    with np.load(tmp_path / "tfidf.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_unknown_words_and_empty_texts_have_finite_features(tfidf):
    features = tfidf.transform(NEW)
    assert np.isfinite(features).all()
    # Only the length tells a text of unknown words from an empty one.
    np.testing.assert_array_equal(features[2, :-1], features[3, :-1])
    assert features[2, -1] < features[3, -1]


def test_unknown_words_and_repetition_leave_the_direction_of_the_known_words(tfidf):
    zero, known, mixed, twice = tfidf.transform([("", r) for r in ("", "bread", "bread zebra", "bread zebra bread")])
    np.testing.assert_array_equal(mixed[:-1], known[:-1])
    # Features are not normalised: a word that occurs twice counts 1 + log 2 times.
    np.testing.assert_allclose((twice - zero)[:-1], (1 + np.log(2)) * (known - zero)[:-1], atol=1e-5)


def test_signs_count_and_the_prompt_does_not(tfidf):
    a, b, c = tfidf.transform([("", "bread soup"), ("x", "bread soup"), ("", "bread soup 😊")])
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a[:-1], c[:-1])


@pytest.mark.parametrize("responses", [["yes", "no"], ["yes", "yes yes"], ["", ""]])
def test_too_few_words_for_tfidf_is_an_error(responses):
    assert "vectors" in complaint(TfidfFeaturiser.fit, [("", response) for response in responses], 4)


def save(path, array):
    np.save(path, array)
    return str(path)


def test_vectors_follow_the_order_of_the_texts_file(tmp_path):
    vectors = save(tmp_path / "v.npy", np.arange(6).reshape(3, 2))
    texts = tmp_path / "t.jsonl.gz"
    texts.write_bytes(gzip.compress("".join(json.dumps(t) + "\n" for t in reversed(KNOWN)).encode()))
    assert read_vectors(vectors, "", KNOWN).transform(KNOWN[1:]).tolist() == [[2, 3], [4, 5]]
    features = read_vectors(vectors, str(texts), KNOWN).transform(KNOWN)
    assert features.dtype == np.float32
    assert features.tolist() == [[4, 5], [2, 3], [0, 1]]


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((2, 4)), "2 rows"),
        (np.zeros((4, 4)), "4 rows"),
        (np.array([[0.0, 1], [2, np.nan], [4, 5]]), "row 1 is not finite"),
        (np.array([[0.0, 1], [2, 3], [np.inf, 5]]), "row 2 is not finite"),
        (np.zeros(3), "must be"),
        (np.zeros((3, 1, 1)), "must be"),
        (np.full((3, 2), "x"), "must be"),
    ],
)
def test_vectors_that_do_not_fit_are_named(tmp_path, array, word):
    vectors = save(tmp_path / "v.npy", array)
    message = complaint(read_vectors, vectors, "", KNOWN)
    assert message.startswith(vectors)
    assert word in message


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", b"PK\x03\x04 no archive", None])
def test_unreadable_vectors_are_named(tmp_path, content):
    path = tmp_path / "v.npy"
    if content is not None:
        path.write_bytes(content)
    assert complaint(read_vectors, str(path), "", KNOWN).startswith(str(path))


def test_arrays_of_objects_and_archives_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=np.zeros((3, 2)))
    for name in ("object.npy", "archive.npz"):
        path = str(tmp_path / name)
        assert complaint(read_vectors, path, "", KNOWN).startswith(path)


@pytest.mark.parametrize("line", ["no json", '["only one"]', "5", '"ab"', '{"p": 1, "q": 2}', "[1, 2]", '[["p"], "a"]'])
def test_a_bad_line_of_the_texts_file_is_named(tmp_path, line):
    vectors = save(tmp_path / "v.npy", np.zeros((2, 2)))
    texts = tmp_path / "t.jsonl"
    texts.write_text(f'["p", "a"]\n{line}\n')
    assert complaint(read_vectors, vectors, str(texts), KNOWN).startswith(f"{texts}:2: ")


def test_a_missing_texts_file_is_named(tmp_path):
    vectors = save(tmp_path / "v.npy", np.zeros((3, 2)))
    texts = str(tmp_path / "t.jsonl")
    assert complaint(read_vectors, vectors, texts, KNOWN).startswith(texts)


def test_given_vectors_know_no_other_text():
    message = complaint(GivenFeaturiser(KNOWN, np.zeros((3, 2)), "v.npy").transform, [("p", "a"), ("p", "new\ntext")])
    assert message.startswith("v.npy: no vector for 1 texts")
    assert r"'new\ntext'" in message


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv"])
@pytest.mark.parametrize("array", ["rows.npy", "rows.minilm.npy"])
@pytest.mark.parametrize("texts", ["rows.texts.jsonl", "rows.texts.jsonl.gz", ""])
def test_vectors_are_found_beside_the_rows(tmp_path, ending, array, texts):
    for name in (f"rows.{ending}", array, texts, "other.npy", "rows2.npy"):
        if name:
            (tmp_path / name).touch()
    expected = str(tmp_path / array), str(tmp_path / texts) if texts else ""
    assert find_vectors(str(tmp_path / f"rows.{ending}")) == expected


def test_no_array_or_two_or_no_file_are_no_vectors(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert find_vectors(str(rows)) == ("", "")
    rows.touch()
    assert find_vectors(str(rows)) == ("", "")
    (tmp_path / "rows.a.npy").touch()
    (tmp_path / "rows.b.npy").touch()
    assert find_vectors(str(rows)) == ("", "")
    assert find_vectors(str(tmp_path)) == ("", "")


def sentences(characters: str, number: int = 60) -> list[tuple[str, str]]:
    rng = np.random.default_rng(1)
    return list({("", "".join(rng.choice(list(characters), rng.integers(4, 9)))) for _ in range(number)})


@pytest.mark.parametrize(
    "characters",
    ["我们今天学习做面包的方法很好", "ขนมปังอร่อยมากวันนี้ทำง่าย", "今日はパンをつくります", "ភាសាខ្មែរល្អ", "ຂ້ອຍມັກເຂົ້າ"],
)
def test_languages_without_spaces_have_as_many_rows_as_texts(characters):
    """Characters of such scripts are words; otherwise a sentence is one word that no other text has."""
    texts = sentences(characters)
    features = TfidfFeaturiser.fit(texts, components=40).transform(texts)
    different = {"".join(sorted(response)) for _, response in texts}  # pairs of neighbours tell apart more
    assert len(np.unique(features.round(5), axis=0)) >= len(different)


def test_latin_words_stay_words():
    tokens = TfidfFeaturiser.fit(TEXTS, 5)._vectoriser.build_tokenizer()
    words = ["größe", "naïve", "über", "-", "alles", "3", ".", "5", "αβγ", "привет"]
    assert tokens("größe naïve über-alles 3.5 αβγ привет") == words
    assert tokens("面包bread面包") == ["面", "包", "bread", "面", "包"]


def test_texts_that_features_cannot_tell_apart_are_counted(caplog):
    texts = [("p", "same"), ("q", "same"), ("p", "other"), ("p", "another")]
    featurise._checked(np.array([[1.0], [1.0], [1.0], [2.0]]), texts, "rows.jsonl")
    assert "rows.jsonl: features cannot tell 1 of 4 texts from others" in caplog.text


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_array_is_one_line(tmp_path, seed):
    path = save(tmp_path / "v.npy", np.zeros((3, 2)))
    content = bytearray((tmp_path / "v.npy").read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, 128, 3):
        content[place] = rng.integers(256)
    (tmp_path / "v.npy").write_bytes(content)
    made, message = outcome(lambda: read_vectors(path, "", KNOWN))
    assert message.startswith(path) if made is None else made.transform(KNOWN).shape[0] == len(KNOWN)
