"""Embedding: padding and batches do not matter, a killed run goes on, several processes share the work."""

import json

import numpy as np
import pytest

from fssa_jax import embed
from fssa_jax.config import DataConfig
from fssa_jax.data import build
from fssa_jax.data import dataset as datasets
from fssa_jax.embed import EmbedSettings, TextEncoder, embed_to
from tests import small_lm, tiny
from tests.mistakes import complaint

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
    return path


@pytest.fixture(scope="module")
def encoder(directory):
    return TextEncoder(EmbedSettings(str(directory / "bert")))


def test_a_text_is_embedded_the_same_alone_and_among_others(encoder):
    together = encoder.embed(texts())
    for i in (0, 7, 22):
        np.testing.assert_allclose(encoder.embed([texts()[i]])[0], together[i], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert len(np.unique(together.round(4), axis=0)) > 10


def test_long_texts_are_cut_to_the_limit(encoder):
    assert max(map(len, encoder.tokens([("", "bread " * 200)]))) == 32


@pytest.mark.parametrize("settings", [{"pool": "mean"}, {"pool": "last"}, {"pool": "mean", "layer": 2}])
def test_decoders_embed_too(directory, settings):
    encoder = TextEncoder(EmbedSettings(str(directory / "decoder"), **settings))
    vectors = encoder.embed(texts(5))
    assert vectors.shape == (5, 32)
    np.testing.assert_allclose(encoder.embed(texts(5)[3:4])[0], vectors[3], atol=1e-5)


def test_a_killed_run_goes_on_without_repeating(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SHARD", 5)
    done = []
    whole = TextEncoder.embed

    def counted(self, part):
        done.append(len(part))
        if len(done) == 3:
            raise KeyboardInterrupt
        return whole(self, part)

    monkeypatch.setattr(TextEncoder, "embed", counted)
    with pytest.raises(KeyboardInterrupt):
        embed_to(encoder, texts(), tmp_path / "e")
    features = embed_to(encoder, texts(), tmp_path / "e")
    assert done == [5, 5, 5, 5, 5, 3]  # two were kept, the third is done again
    np.testing.assert_allclose(features, whole(encoder, texts()), atol=1e-5)
    assert isinstance(features, np.memmap)
    assert not (tmp_path / "e" / "shards").exists()
    before = len(done)
    embed_to(encoder, texts(), tmp_path / "e")
    assert len(done) == before


def test_each_process_takes_its_share(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SHARD", 5)
    wrote = {}
    monkeypatch.setattr(embed, "_join", lambda *args, **kw: None)
    for process in (1, 0):
        with pytest.raises(FileNotFoundError):  # nobody has joined the shards yet
            embed_to(encoder, texts(), tmp_path / "e", process=process, processes=2)
        wrote[process] = {p.name for p in (tmp_path / "e" / "shards").iterdir()}
    assert wrote[1] == {"000000005.npy", "000000015.npy"}
    assert len(wrote[0]) == 5
    monkeypatch.undo()
    monkeypatch.setattr(embed, "_SHARD", 5)
    features = embed_to(encoder, texts(), tmp_path / "e", process=0, processes=2)
    np.testing.assert_allclose(features, encoder.embed(texts()), atol=1e-5)


def test_a_run_of_another_encoder_or_other_texts_is_refused(encoder, directory, tmp_path):
    embed_to(encoder, texts(), tmp_path / "e")
    other = TextEncoder(EmbedSettings(str(directory / "other")))
    assert "another encoder" in complaint(embed_to, other, texts(), tmp_path / "e")
    shorter = TextEncoder(EmbedSettings(str(directory / "bert"), max_tokens=8))
    assert "another encoder or other settings" in complaint(embed_to, shorter, texts(), tmp_path / "e")
    assert "other texts" in complaint(embed_to, encoder, texts(seed=1), tmp_path / "e")


def test_settings_that_do_not_fit_the_model_are_named(directory):
    assert "pool 'mean'" in complaint(TextEncoder, EmbedSettings(str(directory / "bert"), pool="last"))
    assert "3 layers" in complaint(TextEncoder, EmbedSettings(str(directory / "decoder"), layer=4))


def test_rows_with_an_encoder_are_saved_and_read_with_it(directory, tmp_path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=6))
    data = DataConfig(path=str(rows), features="encoder", encoder=str(directory / "bert"))
    dataset = build.rows_dataset(data, scratch=tmp_path / "scratch")
    assert dataset.features.shape == (len(dataset.texts), 16)
    known = datasets.seen_in_training(dataset)
    np.testing.assert_allclose(dataset.features[known].mean(0), 0, atol=1e-4)
    datasets.save(dataset, tmp_path / "data")
    loaded = datasets.load(tmp_path / "data")
    new = [("", "just mix bread"), dataset.texts[0]]
    np.testing.assert_allclose(loaded.featuriser.transform(new), dataset.featuriser.transform(new), atol=1e-5)
    np.testing.assert_allclose(loaded.featuriser.transform(new)[1], dataset.features[0], atol=1e-4)


def test_the_limit_of_a_sentence_transformers_model_is_read(directory, tmp_path):
    import shutil

    shutil.copytree(directory / "bert", tmp_path / "limited")
    (tmp_path / "limited" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    assert TextEncoder(EmbedSettings(str(tmp_path / "limited"))).limit == 7
