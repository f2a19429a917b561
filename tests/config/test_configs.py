"""The shipped configurations are allowed, and the paper's experiment is learnt."""

import importlib

import pytest

from configs import synthetic
from fssa_jax.config import Btl, Dpl, FrozenEncoder, NpBtl, PolicyConfig, SetEncoder, Synthetic, check, to_json
from fssa_jax.config.experiment import read
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from tests import tiny
from tests.mistakes import complaint

VARIANTS = [
    *(("synthetic", v) for v in ("btl", "dpl", "np_btl", "vpl")),
    *((name, v) for name in ("styles", "rows") for v in ("btl", "np_btl", "np_btl_attention")),
    *(("ultrafeedback_reward", f"hht,{m}") for m in ("np_btl", "btl_mixed", "btl_honesty")),
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_variant_is_allowed_and_documented(name, variant, tmp_path):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(variant)
    check(config)
    assert_survives_its_file(config, tmp_path)
    assert config.name == f"{name.removesuffix('_reward')} {variant}"
    assert f"--config=configs/{name}.py:" in (module.__doc__ or "")
    assert variant.split(",")[-1].replace("btl_honesty", "btl_LABEL") in (module.__doc__ or "")
    assert "nope" in complaint(module.get_config, "nope")


def assert_survives_its_file(config, directory):
    (directory / "config.json").write_text(to_json(config))
    assert read(directory / "config.json") == config


POLICIES = [
    *(("styles", v) for v in ("sft", "dpo", "np_dpo_film", "np_dpo_lora_core", "np_dpo_lora")),
    *(("rows", v) for v in ("sft", "np_dpo")),
    *(("ultrafeedback_policy", f"hh,{m}") for m in ("np_dpo", "np_dpo_ours", "dpo_mixed", "dpo_honesty")),
    *(("ultrafeedback_policy", f"hht,{m}") for m in ("np_dpo", "dpo_truthfulness")),
]


@pytest.mark.parametrize(("name", "variant"), POLICIES)
def test_every_policy_is_allowed_and_documented(name, variant, tmp_path):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(variant)
    assert config.name == f"{name.removesuffix('_policy')} {variant}"
    assert_survives_its_file(config, tmp_path)
    if isinstance(config, PolicyConfig):
        assert name == "ultrafeedback_policy" or "config.policy.base: give" in complaint(check, config)
        config.policy.base = "base"
        if isinstance(config.encoder, FrozenEncoder):
            assert "config.encoder.init_from: name" in complaint(check, config)
            config.encoder.init_from = "reward"
    check(config)
    assert variant.split(",")[-1].replace("dpo_honesty", "dpo_LABEL").replace("dpo_truthfulness", "dpo_LABEL") in (
        module.__doc__ or ""
    )
    assert "nope" in complaint(module.get_config, "nope")


@pytest.mark.experiments
@pytest.mark.parametrize("kind", [Btl, Dpl])
def test_models_without_a_context_have_their_baselines_too(tmp_path, kind):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()), steps=10)
    config.model = kind(width=8)
    train(config, tmp_path / "run")
    result = evaluate_workdir(tmp_path / "run")
    assert {"accuracy", "population", "specialist"} <= set(result)
    assert (result["accuracy"] == result["population"]) == (kind is Btl)


@pytest.mark.experiments
def test_a_short_run_beats_every_model_that_does_not_read_the_context(tmp_path):
    config = synthetic.get_config("np_btl")
    assert isinstance(config.data, Synthetic)
    assert isinstance(config.model, NpBtl)
    assert isinstance(config.model.encoder, SetEncoder)
    config.model.width = config.model.encoder.width = 32
    config.objective.samples, config.evaluate.samples, config.evaluate.shuffles = 2, 8, 1
    config.data.eval_users, config.train.users, config.train.steps_per_call = 150, 32, 25
    config.train.steps, config.train.population_steps, config.train.specialist_steps = 250, 25, 25
    config.train.validate_every = config.train.checkpoint_every = 250
    train(config, tmp_path / "run")
    result = evaluate_workdir(tmp_path / "run")
    accuracy = {k: cell["mean"] for k, cell in result["accuracy"].items()}
    assert accuracy["0"] < 0.8
    assert accuracy["10"] > 0.85  # the Bayes limit without context is .75
    assert accuracy["10"] <= result["bayes"]["10"]["high"] + 1e-6
    assert abs(result["control"]["10"]["mean"] - 0.75) < 0.06
    assert result["steering"]["10"]["mean"] > 0.5
    assert result["warnings"] == []
