"""What the benchmarks of policies compare is allowed, and their programs run."""

import functools
import json
from typing import Any

import pytest
from absl.testing import flagsaver

from benchmarks import accelerator, chat_data, chat_speed, chat_steering, intervals, policies, policy_speed, published
from configs.styles import get_config
from fssa_jax.config import NewEncoder, PolicyConfig, SetEncoder, check
from tests.mistakes import complaint
from tests.programs import run


@pytest.mark.parametrize("name", policies.ABLATIONS)
def test_every_row_of_the_ablation_changes_settings_that_there_are(name):
    kind, changes = policies.ablated(policies.ABLATIONS[name])
    config = get_config(f"np_dpo_{kind}")
    assert isinstance(config, PolicyConfig)
    config.policy.base = "base"
    changed = policies.change(config, changes.policy)
    for key, value in changes.policy.items():
        if not any(other.startswith(f"{key}.") for other in changes.policy):  # a group may be changed further
            assert functools.reduce(getattr, key.split("."), changed) == value
    if not isinstance(changed.encoder, NewEncoder):
        assert "config.encoder.init_from: name" in complaint(check, changed)
        changed.encoder.init_from = "reward"
    assert check(changed) is None
    reward = policies.change(get_config("np_btl"), changes.reward)
    assert check(reward) is None
    assert (reward == get_config("np_btl")) == (not changes.reward)
    assert check(policies.change(get_config("sft"), changes.base)) is None


def test_an_entry_of_the_ablation_leaves_the_next_as_it_is():
    """Groups of settings that an entry sets are copies."""
    _, changes = policies.ablated(policies.ABLATIONS["published recipe"])
    changed = policies.change(get_config("np_dpo_film"), changes.policy)
    _, again = policies.ablated(policies.ABLATIONS["choices for labels, encoder from random init"])
    other = policies.change(get_config("np_dpo_lora_core"), again.policy)
    assert changed.encoder.model.encoder == SetEncoder(
        width=32, latent_dim=32, residual=False, pool="sum", prior_choice=False
    )
    shipped: Any = get_config("np_btl")
    assert other.encoder.model == shipped.model


def test_a_setting_that_is_not_there_is_named():
    message = complaint(policies.change, get_config("np_dpo_film"), {"train.user": 3})
    assert message == "config.train.user: no such setting"


@pytest.mark.benchmarks
def test_every_kind_of_adapter_is_timed_next_to_a_plain_one(monkeypatch):
    out = {kind: policy_speed.measure(kind, "tiny", peak_tflops=1.0) for kind in ("plain", "lora_core")}
    assert out["lora_core"]["tokens_a_second"] > 0
    assert out["lora_core"]["trained_parameters"] > 0
    assert 0 < out["plain"]["mfu"] < 1
    out["published"] = {"seconds_a_step": 100.0}
    policy_speed.compared(out)
    cost = out["lora_core"]["seconds_a_step"] / out["plain"]["seconds_a_step"] - 1
    assert out["lora_core"]["cost_of_conditioning"] == pytest.approx(cost, abs=1e-3)
    for kind in ("plain", "lora_core"):
        assert out[kind]["times_as_fast_as_published"] == pytest.approx(100 / out[kind]["seconds_a_step"], rel=0.01)
    assert "'full' is none of plain, film" in complaint(policy_speed.measure_apart, ["full"], "tiny")
    monkeypatch.setattr(published, "torch", None)
    message = complaint(policy_speed.measure_apart, ["published"], "tiny")
    assert message == "--adapters=published: needs PyTorch; pip install torch, or leave it out"


@pytest.mark.benchmarks
def test_the_speed_of_a_chat_model_is_measured_in_small(monkeypatch):
    """What is spared is not computed; what others take is left out where they are not installed."""
    monkeypatch.setattr(chat_speed, "_alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(chat_speed.peft_steps, "available", lambda: False)
    shape = chat_speed.SHAPES["tiny"]
    out = chat_speed.measure(shape)
    assert set(out) == {"decode_1", "decode_8", "score", "step"}
    assert set(out["step"]) == {"equal", "spared"}
    assert all(value > 0 for part in ("decode_1", "decode_8", "score") for value in out[part].values())
    assert all(found["seconds"] > 0 and found["peak_memory_gb"] > 0 for found in out["step"].values())


@pytest.mark.benchmarks
def test_every_part_of_the_accelerator_runs_in_small():
    printed = run("accelerator", "--simulate", package="benchmarks").stdout
    out = json.loads(printed[printed.index("\n{\n") :])
    assert set(accelerator.BUDGETS) < set(out)
    rows = {f"{part}: {name}": row for part in accelerator.BUDGETS for name, row in out[part].items()}
    assert not [name for name, row in rows.items() if "error" in row]
    assert {name for name, row in rows.items() if "left_out" in row} <= {"torch: tiny"}
    trained = out["train"]["tiny, lora_core, remat none"]["seconds_a_step"]
    plain = out["train"]["tiny, plain, remat none"]["seconds_a_step"]
    cost = out["train"]["tiny, lora_core, remat none"]["cost_of_conditioning"]
    assert cost == pytest.approx(trained / plain - 1, abs=1e-3)


def test_parts_of_the_accelerator_have_budgets_and_errors_of_their_own(monkeypatch):
    """A row that fails and a part whose time is up leave the others as they are."""

    class Parts:
        def limits(self):
            yield "breaks", lambda: 1 // 0
            yield "works", lambda: {"value": 1}

        def train(self):
            yield "too late", lambda: {"value": 2}

    monkeypatch.setattr(accelerator, "BUDGETS", {"train": 0.0, "limits": 1.0})
    told = []
    parts: Any = Parts()
    out = accelerator.measure(["train", "limits"], parts, 100.0, told.append)
    assert out["limits"]["works"] == {"value": 1}
    assert "ZeroDivisionError" in out["limits"]["breaks"]["error"]
    assert out["train"]["too late"] == {"left_out": "the time of this part was up"}
    assert len(told) == 2
    message = complaint(accelerator.measure, ["memory"], parts)
    assert message == "--parts: 'memory' is none of train, limits"


@pytest.mark.benchmarks
def test_intervals_of_what_says_nothing_hold_zero():
    out = intervals.coverage(1, 100)
    for name in ("control", "scrambled"):
        assert all(abs(s) < 2 * width for s, width in zip(out[name]["mean"], out[name]["half_width"], strict=True))
        assert all(width > 1 for width in out[name]["half_width"])


def test_the_figures_of_chat_are_those_of_the_report():
    interval = {"mean": 0.512, "low": 0.4, "high": 0.6}
    written = {"words": 20.4, "attribute_movement": interval, "attributes": {"list": {"movement": interval}}}
    generation = {
        "responses": 8,
        "base": {"words": 30.0, "movement": 0.01},
        "policy": {"10": written},
        "best_of": {"base": {"responses": 4, "8": {"n": 8, "movement": 0.25}}},
    }
    out = chat_steering.figures({"steering": {"10": interval}, "control_steering": None, "generation": generation})
    assert out["steering"] == {"10": [51.2, 40.0, 60.0]}
    assert out["written"]["k = 10"] == {
        "words": 20.4,
        "movement": [51.2, 40.0, 60.0],
        "by_attribute": {"list": [51.2, 40.0, 60.0]},
    }
    assert out["written"]["base, best of 8"] == {"movement": 25.0}
    assert out["responses"] == 8


def test_the_texts_of_chat_are_asked_in_every_manner_and_the_bad_ones_left_out():
    items = chat_data.asked()
    assert len(items) == 128 * 17
    assert len({item.seed for item in items}) == len(items)
    topics = list(dict.fromkeys(topic for topic, _ in chat_data.questions()))
    splits = [chat_data.split_of(topic, i, topics) for topic in topics for i in range(8)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [90, 14, 24]
    rows = [
        {"response": "A good answer.", "finish": "stop", "unfinished": False},
        {"response": "A good answer.", "finish": "sentence", "unfinished": True},
        {"response": "No end of it", "finish": "length", "unfinished": True},
        {"response": "So so so so so so.", "finish": "stop", "unfinished": False},
        {"response": "Too short.", "finish": "stop", "unfinished": False},
    ]
    assert chat_data.kept(rows) == [{"response": "A good answer.", "unfinished": False}]


def test_flags_that_a_measurement_does_not_read_are_refused():
    with flagsaver.as_parsed(what="ablation", specialists="true"):
        assert "--specialists: --what=ablation does not use it" in complaint(policies.main)
    with flagsaver.as_parsed(what="ablation", entry=["beta 2"]):
        assert "--entry: no entry 'beta 2'; there are: lora_core; " in complaint(policies.main)
    with flagsaver.as_parsed(what="chat", kinds="film"):
        assert "--kinds: --what=chat does not use it" in complaint(policies.main)
    with flagsaver.as_parsed(what="limit", room=""):
        assert "--room: name the directory" in complaint(policies.main)
    with flagsaver.as_parsed(what="polis", data=""):
        assert "--data: give the rows" in complaint(policies.main)


@pytest.mark.benchmarks
def test_the_means_of_every_series_stand_next_to_the_limit():
    done = run(
        "accuracy",
        "--config=configs/synthetic.py:np_btl",
        "--seeds=0,1",
        "--config.data.eval_users=8",
        "--config.train.steps=1",
        "--config.train.steps_per_call=1",
        "--config.train.validate_every=1",
        "--config.train.checkpoint_every=1",
        "--config.train.population_steps=1",
        "--config.train.specialist_steps=1",
        "--config.train.users=8",
        "--config.evaluate.draws=1",
        "--config.evaluate.bootstrap=10",
        package="benchmarks",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout[done.stdout.index("{\n") :])
    for name in ("accuracy", "bayes", "steering", "steering_gap", "population", "control"):
        assert set(out[name]) == {"0", "1", "3", "5", "10"}, name
    below = out["accuracy"]["3"] - out["bayes"]["3"]
    assert sum(out["accuracy_minus_bayes_by_seed"]["3"]) / 2 == pytest.approx(below, abs=2e-5)
