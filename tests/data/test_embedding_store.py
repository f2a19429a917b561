"""Embeddings on disk: a killed run goes on, several processes share the work, other texts are refused."""

import numpy as np
import pytest

from fssa_jax.data import embedding_store as store
from fssa_jax.data.embedding_store import embed_to
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
from tests import small_lm
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


def test_a_killed_run_goes_on_without_repeating(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_SHARD", 5)
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
    monkeypatch.setattr(store, "_SHARD", 5)
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
    monkeypatch.setattr(store, "_SHARD", 5)
    monkeypatch.setattr(store, "_PATIENCE", 0)
    message = complaint(lambda: embed_to(encoder, texts(), tmp_path / "e", process=1, processes=2))
    assert "other processes did not finish" in message
    assert {p.name for p in (tmp_path / "e" / "shards").iterdir() if "cut" not in p.name} == {
        "000000005.npy",
        "000000015.npy",
    }
    features = embed_to(encoder, texts(), tmp_path / "e", process=0, processes=2)
    np.testing.assert_allclose(features, encoder.embed(texts()), atol=1e-5)
    np.testing.assert_array_equal(embed_to(encoder, texts(), tmp_path / "e", process=1, processes=2), features)


def test_texts_that_are_cut_are_counted(directory, tmp_path, caplog):
    encoder = TextEncoder(EmbedSettings(str(directory / "decoder"), max_tokens=12))
    embed_to(encoder, [("how?", "mix it"), ("how? " * 20, "hey")], tmp_path / "e")
    assert "texts are longer than 12 tokens and were cut" in caplog.text
    assert 1 in store.cut_texts(tmp_path / "e")
    sentences = TextEncoder(EmbedSettings(str(directory / "bert")))
    whole = "bread " * 100
    ids = sentences.tokenizer.raw(whole)["input_ids"]
    exact = sentences.tokenizer.raw.decode(ids[:32])  # as long as the limit, and not cut
    assert len(sentences.tokenizer.raw(exact)["input_ids"]) == 32
    assert sentences.tokens([("", exact), ("", whole)])[1] == [1]
    kept = encoder.tokenizer.raw.decode(encoder.tokens([("how? " * 20, "hey")])[0][0])
    assert kept.endswith("hey")


def test_a_run_of_another_encoder_or_other_texts_is_refused(encoder, directory, tmp_path):
    embed_to(encoder, texts(), tmp_path / "e")
    other = TextEncoder(EmbedSettings(str(directory / "other")))
    assert "another encoder" in complaint(embed_to, other, texts(), tmp_path / "e")
    shorter = TextEncoder(EmbedSettings(str(directory / "bert"), max_tokens=8))
    assert "another encoder or other settings" in complaint(embed_to, shorter, texts(), tmp_path / "e")
    assert "other texts" in complaint(embed_to, encoder, texts(seed=1), tmp_path / "e")


def test_no_flipped_bit_of_a_shard_or_of_the_result_is_used(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_SHARD", 5)
    encoder = TextEncoder(EmbedSettings(str(directory / "bert")))
    whole = np.array(embed_to(encoder, texts(), tmp_path / "whole"))
    joined = store._join

    def damaged(parts, *rest):
        file = sorted(parts.glob("*.npy"))[1]
        content = bytearray(file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
        joined(parts, *rest)

    monkeypatch.setattr(store, "_join", damaged)
    assert "damaged, and removed; run the same command again" in complaint(embed_to, encoder, texts(), tmp_path / "e")
    monkeypatch.setattr(store, "_join", joined)
    np.testing.assert_allclose(embed_to(encoder, texts(), tmp_path / "e"), whole, atol=1e-5)
    content = bytearray((tmp_path / "e" / "features.npy").read_bytes())
    content[-3] ^= 16
    (tmp_path / "e" / "features.npy").write_bytes(content)
    assert "the checksum of features.npy does not match" in complaint(embed_to, encoder, texts(), tmp_path / "e")
