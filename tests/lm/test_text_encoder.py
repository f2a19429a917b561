"""Embedding: padding and batches do not matter; what a model cannot do is named."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

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
        assert encoder.tokenizer.raw.decode(ids[0][starts[0] :]).strip() == text[1]
        params = encoder._run.args[0]
        hidden, _ = encoder.model.apply(params, jnp.asarray(ids), until=1, method="hidden")
        np.testing.assert_allclose(encoder.embed([text])[0], hidden[0, starts[0] :].mean(0), atol=1e-5)


def test_settings_that_do_not_fit_the_model_are_named(directory):
    assert "pool 'mean'" in complaint(TextEncoder, EmbedSettings(str(directory / "bert"), pool="last"))
    assert "3 layers" in complaint(TextEncoder, EmbedSettings(str(directory / "decoder"), layer=4))


def test_the_limit_of_a_sentence_transformers_model_is_read(directory, tmp_path):
    shutil.copytree(directory / "bert", tmp_path / "limited")
    (tmp_path / "limited" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    limited = TextEncoder(EmbedSettings(str(tmp_path / "limited")))
    assert limited.limit == 7
    assert limited.fingerprint() != TextEncoder(EmbedSettings(str(directory / "bert"))).fingerprint()
