"""What a sentence-transformers checkpoint says of itself is done, or refused by name."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.sentence_modules import read_sentence_modules
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
from tests import small_lm
from tests.mistakes import complaint

TEXTS = [("", "hey just mix it"), ("how?", "mix"), ("", "I bake bread")]
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sentences") / "bert"
    small_lm.save_bert(directory)
    return directory


@pytest.fixture
def checkpoint(bert, tmp_path):
    def make(pooling, modules=MODULES, folder="1_Pooling", **files):
        directory = tmp_path / "encoder"
        shutil.copytree(bert, directory)
        (directory / folder).mkdir()
        (directory / folder / "config.json").write_text(json.dumps(pooling))
        (directory / "modules.json").write_text(json.dumps(modules))
        for name, content in files.items():
            (directory / f"{name}.json").write_text(json.dumps(content))
        return directory

    return make


def states(encoder):
    """The states of the tokens of each text, one text at a time."""
    out = []
    for ids in encoder.tokens(TEXTS)[0]:
        hidden = encoder.model.apply(encoder._run.args[0], jnp.asarray([ids]), jnp.array([len(ids)]))
        out.append(np.asarray(hidden[0]))
    return out


EXPECTED = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len": lambda x: x.sum(0) / len(x) ** 0.5,
}


@pytest.mark.parametrize(
    ("pooling", "pools"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode": "cls"}, ["cls"]),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, ["max", "mean"]),
        ({"pooling_mode": ["mean", "cls"]}, ["cls", "mean"]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ["mean_sqrt_len"]),
        ({"word_embedding_dimension": 16}, ["mean"]),
    ],
)
def test_poolings_are_those_of_the_checkpoint(checkpoint, pooling, pools):
    encoder = TextEncoder(EmbedSettings(str(checkpoint(pooling)), normalise=False))
    wanted = [np.concatenate([EXPECTED[pool](x) for pool in pools]) for x in states(encoder)]
    assert encoder.width == 16 * len(pools)
    np.testing.assert_allclose(encoder.embed(TEXTS), wanted, atol=1e-5)


def test_a_renamed_pooling_folder_is_found(checkpoint):
    modules = [MODULES[0], MODULES[1] | {"path": "how_to_pool"}]
    directory = checkpoint({"pooling_mode": "cls"}, modules, "how_to_pool")
    assert read_sentence_modules(directory).pools == ("cls",)


def test_default_prompt_and_case_change_the_tokens(checkpoint):
    directory = checkpoint(
        {"pooling_mode": "mean"},
        config_sentence_transformers={"prompts": {"q": "mix: "}, "default_prompt_name": "q"},
        sentence_bert_config={"max_seq_length": 9, "do_lower_case": True},
    )
    encoder = TextEncoder(EmbedSettings(str(directory)))
    ids = encoder.tokens([("", "HEY bread")])[0][0]
    whole = encoder.tokenizer.raw("mix: hey bread")["input_ids"]
    assert ids == (whole if len(whole) <= 9 else [*whole[:8], whole[-1]])
    assert encoder.limit == 9


DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.mark.parametrize(
    ("pooling", "modules", "files", "reason"),
    [
        ({"pooling_mode": "mean"}, [*MODULES[:2], DENSE], {}, "the module Dense"),
        ({"pooling_mode": "mean"}, MODULES[:1], {}, "lists no Pooling"),
        ({"pooling_mode": "mean"}, ["Pooling"], {}, "modules.json: damaged"),
        ({"pooling_mode": "mean"}, {}, {}, "modules.json: damaged (not a JSON list)"),
        ({"pooling_mode": "weightedmean"}, MODULES, {}, "pooling 'weightedmean' is not supported"),
        ({"pooling_mode_lasttoken": True}, MODULES, {}, "pooling 'lasttoken' is not supported"),
        ({"pooling_mode_mean_tokens": False}, MODULES, {}, "pooling 'none' is not supported"),
        ([], MODULES, {}, "config.json: damaged (not a JSON object)"),
        (
            {"pooling_mode": "mean", "include_prompt": False},
            MODULES,
            {"config_sentence_transformers": {"prompts": {"q": "ask: "}, "default_prompt_name": "q"}},
            "leaves its default prompt out",
        ),
        (
            {"pooling_mode": "mean"},
            MODULES,
            {"config_sentence_transformers": {"prompts": {}, "default_prompt_name": "q"}},
            "has no prompt of the name 'q'",
        ),
        ({"pooling_mode": "mean"}, MODULES, {"sentence_bert_config": {"max_seq_length": "all"}}, "max_seq_length is"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(checkpoint, pooling, modules, files, reason):
    directory = checkpoint(pooling, modules, **files)
    assert reason in complaint(TextEncoder, EmbedSettings(str(directory)))


def test_a_sentence_encoder_made_of_a_decoder_is_refused(tmp_path):
    small_lm.save_decoder(tmp_path / "decoder")
    (tmp_path / "decoder" / "modules.json").write_text(json.dumps(MODULES))
    assert "made of a decoder" in complaint(TextEncoder, EmbedSettings(str(tmp_path / "decoder")))
