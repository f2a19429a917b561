"""The shipped configurations are allowed, and the paper's experiment is learnt."""

import importlib

import pytest

from configs import synthetic
from fssa_jax.config.policy import check as check_policy
from fssa_jax.config.reward import check
from fssa_jax.experiment import train_reward as train
from fssa_jax.report import reward as report
from tests import tiny
from tests.mistakes import complaint

VARIANTS = [
    *(("synthetic", v) for v in ("btl", "dpl", "np_btl", "vpl")),
    *((name, v) for name in ("styles", "rows") for v in ("btl", "np_btl")),
    *(("ultrafeedback_reward", f"hht,{m}") for m in ("np_btl", "btl_mixed", "btl_honesty")),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_is_allowed_and_documented(name, variant):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(variant)
    check(config)
    assert config.name == f"{name.removesuffix('_reward')} {variant}"
    assert f"--config=configs/{name}.py:" in module.__doc__
    assert "nope" in complaint(module.get_config, "nope")


POLICIES = [
    *(("styles", v) for v in ("sft", "dpo", "np_dpo_film", "np_dpo_lora_core", "np_dpo_lora")),
    *(("rows", v) for v in ("sft", "np_dpo")),
    *(("ultrafeedback_policy", f"hh,{m}") for m in ("np_dpo", "np_dpo_ours", "dpo_mixed", "dpo_honesty")),
    *(("ultrafeedback_policy", f"hht,{m}") for m in ("np_dpo", "dpo_truthfulness")),
]


@pytest.mark.parametrize(("name", "variant"), POLICIES)
def test_every_policy_is_allowed_and_documented(name, variant):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(variant)
    assert config.name == f"{name.removesuffix('_policy')} {variant}"
    if not config.is_sft:
        assert name == "ultrafeedback_policy" or "config.policy.base: give" in complaint(check_policy, config)
        config.policy.base = "base"
    if not config.is_sft and config.policy.adapter.latent == "context":
        config.encoder.init_from = "reward"
    check_policy(config)
    assert variant.split(",")[-1].replace("dpo_honesty", "dpo_LABEL").replace("dpo_truthfulness", "dpo_LABEL") in (
        module.__doc__ or ""
    )
    assert "nope" in complaint(module.get_config, "nope")


@pytest.mark.parametrize("kind", ["btl", "dpl"])
def test_models_without_a_context_have_their_baselines_too(tmp_path, kind):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()), steps=10)
    config.model.kind = kind
    train.train(config, tmp_path / "run")
    result = report.evaluate_workdir(tmp_path / "run")
    assert {"accuracy", "population", "oracle"} <= set(result)
    assert (result["accuracy"] == result["population"]) == (kind == "btl")


def test_a_short_run_beats_every_model_that_does_not_read_the_context(tmp_path):
    config = synthetic.get_config("np_btl")
    config.model.width = config.model.encoder.width = 32
    config.objective.samples, config.evaluate.samples, config.evaluate.shuffles = 2, 8, 1
    config.data.eval_users, config.train.users, config.train.steps_per_call = 150, 32, 25
    config.train.steps, config.train.population_steps, config.train.oracle_steps = 250, 25, 25
    config.train.validate_every = config.train.checkpoint_every = 250
    train.train(config, tmp_path / "run")
    result = report.evaluate_workdir(tmp_path / "run")
    accuracy = {k: cell["mean"] for k, cell in result["accuracy"].items()}
    assert accuracy["0"] < 0.8
    assert accuracy["10"] > 0.85  # the Bayes limit without context is .75
    assert accuracy["10"] <= result["bayes"]["10"]["high"] + 1e-6
    assert abs(result["control"]["10"]["mean"] - 0.75) < 0.06
    assert result["steering"]["10"]["mean"] > 0.5
    assert result["warnings"] == []
