"""Flags set single fields of a configuration, whatever kinds it has; a wrong one is one line that names it."""

import sys
from typing import Any

import pytest
from absl import flags
from ml_collections import config_flags

from fssa_jax import program
from tests.programs import ROOT, assert_one_clear_line, run

program.define_config_words()


@pytest.fixture
def configured(monkeypatch):
    """(file, flags …) ↦ the configuration that they say."""

    def read(file: str, *arguments: str) -> Any:
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        monkeypatch.setattr(sys, "argv", ["program", f"--config={ROOT}/configs/{file}", *arguments])
        values(sys.argv)
        return holder.value

    return read


@pytest.mark.parametrize(
    ("file", "key", "said", "value"),
    [
        ("styles.py:np_btl", "optim.learning_rate", "3e-4", 3e-4),
        ("styles.py:np_btl", "optim.learning_rate", "1", 1.0),
        ("styles.py:np_btl", "train.steps", "7", 7),
        ("styles.py:np_btl", "evaluate.k", "(0,2)", (0, 2)),
        ("styles.py:np_btl", "evaluate.k", "3", (3,)),
        ("styles.py:np_btl", "evaluate.shuffle_within_group", "true", True),
        ("styles.py:np_btl", "data.text_encoder.pool", "last", "last"),
        ("styles.py:np_btl", "model.encoder.prior.kinds", "64", 64),
        ("rows.py:np_btl", "model.encoder.prior.rounds", "5", 5),
        ("rows.py:np_btl", "model.learn_texts", "no", "no"),
        ("styles.py:np_btl_attention", "model.encoder.aggregation", "mean", "mean"),
        ("styles.py:np_btl_attention", "model.encoder.inputs", "('chosen','rejected')", ("chosen", "rejected")),
        ("synthetic.py:dpl", "model.link", "logistic", "logistic"),
        ("synthetic.py:np_btl", "data.published", "true", True),
        ("styles.py:np_dpo_film", "policy.adapter.hidden", "3", 3),
        ("styles.py:np_dpo_film", "policy.adapter.shared.rank", "8", 8),
        ("styles.py:np_dpo_lora_core", "policy.adapter.core", "diagonal", "diagonal"),
        ("styles.py:np_dpo_lora", "policy.adapter.width", "32", 32),
        ("styles.py:np_dpo_lora", "encoder.init_from", "runs/styles", "runs/styles"),
        ("styles.py:np_dpo_lora", "encoder.imitate", "advantage", "advantage"),
        ("ultrafeedback_policy.py:hh,np_dpo", "encoder.model.encoder.heads", "4", 4),
        ("ultrafeedback_policy.py:hh,np_dpo", "data.labels", "('honesty',)", ("honesty",)),
        ("ultrafeedback_policy.py:hh,np_dpo", "objective.label_smoothing", "0.1", 0.1),
        ("rows.py:sft", "policy.new.width", "128", 128),
        ("rows.py:sft", "train.unread", "topics", "topics"),
    ],
)
def test_a_flag_sets_one_field_and_nothing_else(configured, file, key, said, value):
    expected, got = configured(file), configured(file, f"--config.{key}={said}")
    assert got != expected
    *groups, last = key.split(".")
    node = expected
    for name in groups:
        node = getattr(node, name)
    setattr(node, last, value)
    assert got == expected
    node = got
    for name in key.split("."):
        node = getattr(node, name)
    assert (node, type(node)) == (value, type(value))


@pytest.mark.parametrize(
    ("file", "argument", "words"),
    [
        ("styles.py:np_btl", "optim.learning_rate=fast", ("--config.optim.learning_rate=fast",)),
        ("styles.py:np_btl", "train.steps=1.5", ("--config.train.steps=1.5",)),
        ("styles.py:np_btl", "train.steps=0", ("config.train.steps: must be > 0, got 0",)),
        ("styles.py:np_btl", "optim.learning_rte=1", ("'learning_rte' of AdamW", "did you mean learning_rate?")),
        ("styles.py:np_btl", "train.specialist_stps=1", ("of RewardTraining", "did you mean specialist_steps?")),
        ("styles.py:np_btl", "trian.steps=1", ("'trian' of RewardConfig", "did you mean train?")),
        ("styles.py:np_btl_attention", "model.encoder.aggregation=max", ("encoder.aggregation=max", "mean|sum|att")),
        ("styles.py:np_btl_attention", "model.encoder.inputs=('text',)", ("config.model.encoder.inputs", "'text'")),
        ("styles.py:np_btl_attention", "model.encoder.prior.rounds=3", ("'prior' of SetEncoder",)),
        ("styles.py:np_btl", "model.encoder.prior.rounds=3", ("'rounds' of DiscretePrior", "kinds")),
        ("styles.py:np_btl", "model.parts=('features',)", ("config.model.parts", "'features'")),
        ("styles.py:np_btl", "model.link=probit", ("'link' of NpBtl", "learn_texts")),
        ("styles.py:btl", "model.encoder.heads=4", ("'encoder' of Btl", "width, population, learn_texts")),
        ("styles.py:np_btl", "data.labels=('honesty',)", ("'labels' of Styles", "text_encoder")),
        ("styles.py:np_btl", "policy.base=base", ("'policy' of RewardConfig",)),
        ("styles.py:np_dpo_film", "policy.adapter.core=full", ("'core' of Film", "places, layers, hidden, shared")),
        ("styles.py:np_dpo_film", "policy.adapter.rank=8", ("'rank' of Film",)),
        ("styles.py:np_dpo_film", "encoder.kl_weight=1", ("'kl_weight' of FrozenEncoder", "init_from, distil")),
        ("styles.py:dpo", "encoder.init_from=runs", ("'init_from' of NoEncoder",)),
        ("styles.py:sft", "objective.beta=1", ("'objective' of SftConfig",)),
        ("styles.py:np_btl", "model=Btl", ("--config.model:", "Btl, Dpl, NpBtl", "--config=FILE.py")),
        ("styles.py:np_dpo_film", "policy.adapter=Lora", ("--config.policy.adapter:", "Film, LoraCore, Lora")),
        ("styles.py:np_btl", "optim=AdamW", ("--config.optim:", "AdamW")),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(file, argument, words, tmp_path):
    done = run("train", f"--config=configs/{file}", f"--config.{argument}", f"--workdir={tmp_path}/run")
    assert_one_clear_line(done, *words)
    assert not (tmp_path / "run").exists()
