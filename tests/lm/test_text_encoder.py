"""Embedding: padding and batches do not matter, a killed run goes on, several processes share the work."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.config.reward import DataConfig
from fssa_jax.data import build
from fssa_jax.data import dataset as datasets
from fssa_jax.data.features import EncoderFeaturiser
from fssa_jax.lm import safetensors as pretrained
from fssa_jax.lm import text_encoder as embed
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder, embed_to
from fssa_jax.ops.padding import length_batches
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
    assert max(map(len, encoder.tokens([("", "bread " * 200)])[0])) == 32


@pytest.mark.parametrize("settings", [{"pool": "mean"}, {"pool": "last"}, {"pool": "mean", "layer": 2}])
def test_decoders_embed_too(directory, settings):
    encoder = TextEncoder(EmbedSettings(str(directory / "decoder"), **settings))
    vectors = encoder.embed(texts(5))
    assert vectors.shape == (5, 32)
    np.testing.assert_allclose(encoder.embed(texts(5)[3:4])[0], vectors[3], atol=1e-5)


def test_the_mean_of_a_response_leaves_out_its_prompt(directory):
    """Also where the beginning of the conversation is cut."""
    for limit in (0, 6):
        settings = EmbedSettings(
            str(directory / "decoder"), pool="response", layer=1, max_tokens=limit, normalise=False
        )
        encoder = TextEncoder(settings)
        text = ("how? " * 3, "hey just mix it")
        ids, cut, starts = encoder.tokens([text])
        assert bool(cut) == bool(limit)
        assert encoder.tokenizer.decode(ids[0][starts[0] :]).strip() == text[1]
        params = encoder._run.args[0]
        hidden, _ = encoder.model.apply(params, jnp.asarray(ids), until=1, method="hidden")
        np.testing.assert_allclose(encoder.embed([text])[0], hidden[0, starts[0] :].mean(0), atol=1e-5)


def test_a_killed_run_goes_on_without_repeating(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SHARD", 5)
    monkeypatch.setattr(encoder, "together", 5)
    done = []
    whole = TextEncoder.embed_and_cut

    def counted(self, part):
        done.append(len(part))
        if len(done) == 3:
            raise KeyboardInterrupt
        return whole(self, part)

    monkeypatch.setattr(TextEncoder, "embed_and_cut", counted)
    with pytest.raises(KeyboardInterrupt):
        embed_to(encoder, texts(), tmp_path / "e")
    features = embed_to(encoder, texts(), tmp_path / "e")
    assert done == [5, 5, 5, 5, 5, 3]  # two were kept, the third is done again
    np.testing.assert_allclose(features, encoder.embed(texts()), atol=1e-5)
    assert isinstance(features, np.memmap)
    assert not (tmp_path / "e" / "shards").exists()
    before = len(done)
    embed_to(encoder, texts(), tmp_path / "e")
    assert len(done) == before


def test_shards_that_are_embedded_together_are_the_same(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SHARD", 5)
    monkeypatch.setattr(encoder, "together", 12)
    np.testing.assert_allclose(embed_to(encoder, texts(), tmp_path / "e"), encoder.embed(texts()), atol=1e-5)


def test_a_full_disk_is_one_line_and_nothing_is_lost(encoder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    assert "cannot be written (No space left on device)" in complaint(embed_to, encoder, texts(), tmp_path / "e")
    assert not list((tmp_path / "e").glob("*.tmp"))
    monkeypatch.undo()
    monkeypatch.setattr(TextEncoder, "embed_and_cut", lambda *_: pytest.fail("what was done is done again"))
    assert embed_to(encoder, texts(), tmp_path / "e").shape == (len(texts()), 16)


def test_each_process_takes_its_share(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "_SHARD", 5)
    monkeypatch.setattr(embed, "_PATIENCE", 0)
    message = complaint(lambda: embed_to(encoder, texts(), tmp_path / "e", process=1, processes=2))
    assert "other processes did not finish" in message
    assert {p.name for p in (tmp_path / "e" / "shards").iterdir() if "cut" not in p.name} == {
        "000000005.npy",
        "000000015.npy",
    }
    features = embed_to(encoder, texts(), tmp_path / "e", process=0, processes=2)
    np.testing.assert_allclose(features, encoder.embed(texts()), atol=1e-5)
    np.testing.assert_array_equal(embed_to(encoder, texts(), tmp_path / "e", process=1, processes=2), features)


def test_no_padded_length_is_beyond_the_positions_of_the_model():
    """512 tokens are a bucket of 624, which a model of 512 positions does not have."""
    sizes = [size for size, _ in length_batches([512, 505, 300, 7], 1024, limit=512)]
    assert max(sizes) == 512


def test_an_encoder_that_does_not_take_the_mean_is_refused(directory, tmp_path):
    shutil.copytree(directory / "bert", tmp_path / "cls")
    (tmp_path / "cls" / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "cls" / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    assert "in another way than the mean" in complaint(TextEncoder, EmbedSettings(str(tmp_path / "cls")))


def test_texts_that_are_cut_are_counted(directory, tmp_path, caplog):
    encoder = TextEncoder(EmbedSettings(str(directory / "decoder"), max_tokens=12))
    embed_to(encoder, [("how?", "mix it"), ("how? " * 20, "hey")], tmp_path / "e")
    assert "texts are longer than 12 tokens and were cut" in caplog.text
    assert 1 in embed.cut_texts(tmp_path / "e")
    sentences = TextEncoder(EmbedSettings(str(directory / "bert")))
    whole = "bread " * 100
    ids = sentences.tokenizer(whole)["input_ids"]
    exact = sentences.tokenizer.decode(ids[:32])  # as long as the limit, and not cut
    assert len(sentences.tokenizer(exact)["input_ids"]) == 32
    assert sentences.tokens([("", exact), ("", whole)])[1] == [1]
    kept = encoder.tokenizer.decode(encoder.tokens([("how? " * 20, "hey")])[0][0])
    assert kept.endswith("hey")


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
    shutil.copytree(directory / "bert", tmp_path / "limited")
    (tmp_path / "limited" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    limited = TextEncoder(EmbedSettings(str(tmp_path / "limited")))
    assert limited.limit == 7
    assert limited.fingerprint() != TextEncoder(EmbedSettings(str(directory / "bert"))).fingerprint()


def test_features_of_a_model_that_is_loaded_already_need_no_second_copy(directory, tmp_path, monkeypatch):
    """Also where its directory has another name now; another model, or another type, is loaded."""
    settings = EmbedSettings(str(directory / "decoder"), layer=1, pool="response")
    some = texts(12)
    features = EncoderFeaturiser(settings)
    expected = features.fit_transform(some, np.arange(8), None)
    features.save(tmp_path)
    shutil.copytree(directory / "decoder", tmp_path / "moved")
    config = pretrained.read_config(tmp_path / "moved")
    variables = pretrained.load_params(tmp_path / "moved", config, jnp.float32)
    loads = []
    load = pretrained.load_params
    monkeypatch.setattr(pretrained, "load_params", lambda *args: loads.append(args[0]) or load(*args))
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
