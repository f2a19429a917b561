"""Features by a pretrained model: saved and read with the rows; a model that is in memory is not loaded again."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.config import Rows, TextEncoder
from fssa_jax.data import dataset as datasets
from fssa_jax.data.features import EncoderFeaturiser
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.lm import text_encoder
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.safetensors import load_params
from fssa_jax.lm.text_encoder import EmbedSettings
from tests import small_lm, tiny

WORDS = ["how", "do", "I", "bake", "bread", "hey", "just", "mix", "it"]


def texts(number=23, seed=0):
    rng = np.random.default_rng(seed)
    return [("" if i % 3 else "how?", " ".join(rng.choice(WORDS, rng.integers(1, 6)))) for i in range(number)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    small_lm.save_bert(path / "bert")
    small_lm.save_bert(path / "other", seed=1)
    small_lm.save_decoder(path / "decoder")
    small_lm.save_decoder(path / "dated", small_lm.DATED)
    return path


def test_rows_with_an_encoder_are_saved_and_read_with_it(directory, tmp_path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=6))
    data = Rows(path=str(rows), features="encoder", text_encoder=TextEncoder(name=str(directory / "bert")))
    dataset = rows_dataset(data, scratch=tmp_path / "scratch")
    assert dataset.features.shape == (len(dataset.texts), 16)
    known = datasets.seen_in_training(dataset)
    np.testing.assert_allclose(dataset.features[known].mean(0), 0, atol=1e-4)
    datasets.save(dataset, tmp_path / "data")
    loaded = datasets.load(tmp_path / "data")
    new = [("", "just mix bread"), dataset.texts[0]]
    np.testing.assert_allclose(loaded.featuriser.transform(new), dataset.featuriser.transform(new), atol=1e-5)
    np.testing.assert_allclose(loaded.featuriser.transform(new)[1], dataset.features[0], atol=1e-4)


def test_features_of_a_model_that_is_loaded_already_need_no_second_copy(directory, tmp_path, monkeypatch):
    """Also where its directory has another name now; another model, or another type, is loaded."""
    settings = EmbedSettings(str(directory / "decoder"), layer=1, pool="response")
    some = texts(12)
    features = EncoderFeaturiser(settings)
    expected = features.fit_transform(some, np.arange(8), None)
    features.save(tmp_path)
    shutil.copytree(directory / "decoder", tmp_path / "moved")
    config = read_config(tmp_path / "moved")
    variables = load_params(tmp_path / "moved", config, jnp.float32)
    loads = []
    monkeypatch.setattr(text_encoder, "load_params", lambda *args: loads.append(args[0]) or load_params(*args))
    for name, dtype, loaded in (
        (settings.encoder, "float32", []),
        (settings.encoder, "bfloat16", [tmp_path / "moved"]),
        ("another", "float32", [directory / "decoder"]),
    ):
        again = EncoderFeaturiser.load(tmp_path)
        again.share(name, tmp_path / "moved", dtype, variables)
        np.testing.assert_allclose(again.transform(some), expected, atol=1e-5)
        assert loads == loaded
        loads.clear()


@pytest.mark.parametrize("date", ["", "2024-07-26"])
def test_new_texts_get_the_date_that_the_others_had(directory, tmp_path, date):
    features = EncoderFeaturiser(EmbedSettings(str(directory / "dated"), date=date))
    features.fit_transform(texts(3), np.arange(3), None)
    features.save(tmp_path)
    kept = EncoderFeaturiser.load(tmp_path)._settings.date
    assert kept == (date or features._model().tokenizer.date)
