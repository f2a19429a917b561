"""The evaluation of a policy: scores next to everything, what is written, and its report."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from fssa_jax.config import BayesEncoder, DiscretePrior, Generation, SetEncoder
from fssa_jax.data.tokenised import tokenise
from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.evaluate.latent import drift
from fssa_jax.evaluate.warnings import steering_warnings
from fssa_jax.evaluate.written import TrainedPolicy, written_for
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.scoring import table_log_probs
from fssa_jax.people.choices import read_choices
from fssa_jax.report.tables import format_generation, generation_table
from tests import tiny, tiny_policy


@pytest.fixture(scope="module")
def work(steered):
    return Workdir.open(steered)


def test_who_has_no_specialist_is_left_out_of_what_specialists_write(work):
    """A group without training people has a latent that nobody trained."""
    task = work.task
    table = work.dataset.splits["train"].table
    train = dataclasses.replace(work.dataset.splits["train"], table=dataclasses.replace(table, group=table.group * 0))
    half = dataclasses.replace(work.dataset, splits={**work.dataset.splits, "train": train})
    split, users = work.dataset.splits["test"], np.arange(2)
    group = np.asarray(split.table.group)[users]
    assert set(group.tolist()) == {0, 1}
    policies = {}
    for name in task.names:
        variables = work.trained(name)[0]
        policies[name] = TrainedPolicy(task.conditioner(name), variables, task.predictor(name, split)(variables))
    whole = written_for(task, split, policies, users, work.config.evaluate)
    assert "specialist" in whole.responses["texts"]
    few = written_for(dataclasses.replace(task, dataset=half), split, policies, users, work.config.evaluate)
    assert "specialist" not in few.responses["texts"]  # side by side stand those who are written for by all
    assert few.report["policy"] == whole.report["policy"]
    assert few.report["specialist"]["kl"] != whole.report["specialist"]["kl"]
    # At strength 0 the policy writes what the base writes; specialists are written for as they were.
    policies["main"] = dataclasses.replace(policies["main"], strength=0.0)
    none = written_for(task, split, policies, users, work.config.evaluate)
    assert max(abs(of_k["kl"]) for of_k in none.report["policy"].values()) < 1e-5
    assert max(abs(of_k["kl"]) for of_k in whole.report["policy"].values()) > 1e-3
    assert none.report["specialist"] == whole.report["specialist"]


def test_the_report_is_whole(steered):
    report = evaluate_workdir(steered)
    directory = steered / "report"
    assert json.loads((directory / "report.json").read_text())["k"] == [0, 1, 3]
    for name in ("accuracy", "nll", "control", "population", "specialist", "in_context", "by_group", "scrambled"):
        assert report[name], name
    for name in ("norm", "norm_scrambled", "norm_contradicted"):
        assert set(report["latent"][name]) == {"0", "1", "3"}, name
    assert 0 <= report["latent"]["active_share"] <= 1
    generation = report["generation"]
    assert set(generation["policy"]) == {"0", "1", "3"}
    assert abs(generation["policy"]["0"]["kl"]) < 0.1  # four steps from the base
    assert len(generation["blend"]["texts"]) == len(generation["blend"]["t"]) == 5
    # From the first person to the second: it starts with what the policy writes for the first.
    written = json.loads((directory / "responses.json").read_text())
    assert generation["blend"]["texts"][0] == written["texts"]["k = 3"][0]
    # Whose wishes nobody knows are judged by the reward model.
    for out in generation["policy"].values():
        assert np.isfinite(out["model_reward"])
        assert 0 <= out["model_win_rate_over_base"] <= 1
        assert 0 <= out["model_win_rate_over_population"] <= 1
    assert "wins over base (reward model)" in (directory / "report.html").read_text()
    # Measured on any data: attributes, quality, and the best of several samples under the reward model.
    for out in (generation["base"], *generation["policy"].values()):
        assert set(out["attributes"]) == set(Generation().attributes)
        assert out["nll_per_token"] > 0
        assert 0 <= out["without_loops"] <= 1
    for of_n in generation["best_of"].values():
        assert of_n["1"]["model_reward"] <= of_n["2"]["model_reward"] <= of_n["3"]["model_reward"]
        assert of_n["responses"] == 2
    assert "policy, best of 3" in format_generation(report)
    for name in ("person_a.jsonl", "person_b.jsonl"):
        assert len(read_choices(str(directory / name))) == 3
    page = (directory / "report.html").read_text()
    assert "Written for people" in page
    assert "From one person to another" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    printed = format_generation(report)
    assert "policy, k = 3" in printed
    assert report["users"]["in_context"] == 2
    assert "choices in the prompt (2 people)" in page
    kl = f"{generation['policy']['3']['kl']:.2f}"
    assert kl in printed
    assert kl in page
    # After twenty steps its encoder still counts choices more than it reads them, and of six people S is mostly noise.
    few = ("S =", "counts choices", "people are scored")
    assert [w for w in report["warnings"] if not any(words in w for words in few)] == []


def test_an_encoder_that_counts_choices_is_told_from_those_that_read_them(work):
    """Choices that contradict each other say nothing, however many they are; the published sum over them grows."""
    split = work.dataset.splits["test"]
    episodes = episodes_of(split, np.arange(len(split.users)), work.config.seed, 3)
    found = {}
    for name, encoder in {
        "bayes": BayesEncoder(),
        "kinds": BayesEncoder(prior=DiscretePrior(kinds=64)),
        "sum": SetEncoder(width=8, latent_dim=8, heads=2, aggregation="sum", prior_choice=False),
    }.items():
        task = tiny_policy.with_encoder(work.task, encoder)
        predictor = task.predictor("main", split)(task.start("main", {}))
        found[name] = drift(predictor, episodes, work.config.evaluate.k, 0, None, undecided=False)
    assert found["bayes"]["counted"] == pytest.approx(0, abs=1e-5)
    assert found["kinds"]["counted"] < 0.1
    norms = found["sum"]["norm_contradicted"]
    assert norms["3"] > 1.5 * norms["1"] > 1.5 * norms["0"]
    [warning] = steering_warnings({"k": [0, 1, 3], "latent": found["sum"]})
    assert "counts choices instead of reading them" in warning
    for counts in ({"counted": 0.2}, {}):  # {}: next to a population model, to be undecided is news
        assert not steering_warnings({"k": [0, 3], "latent": counts})


def test_what_is_written_is_a_table_with_the_columns_that_there_are():
    moved = {"generation": {"responses": 4, "people": 2, "base": {}, "policy": {"3": {}}}}
    moved["generation"]["policy"]["3"]["attribute_movement"] = {"mean": 0.25, "low": 0.05, "high": 0.45}
    assert generation_table(moved)[2][1] == "25 ±20 points"
    row = {"movement": 0.5, "reward": 1.234, "well_formed": 1.0, "win_rate_over_base": 0.75, "kl": 0.1}
    base = {"movement": None, "reward": 0.0, "well_formed": 1.0}
    report = {"generation": {"responses": 4, "people": 2, "base": base, "policy": {"3": row}}}
    head, first, second = generation_table(report)
    assert head == ["", "moves by", "true reward", "wins over base", "well-formed", "KL"]
    assert first == ["base", "", "0.00", "", "100.0 %", ""]
    assert second == ["policy, k = 3", "50.0 points", "1.23", "75 %", "100.0 %", "0.10"]


@pytest.mark.experiments
def test_other_people_are_scored_with_texts_of_their_own(steered, tmp_path, caplog):
    """References and tokens of new texts are those that the base gives them; too long ones are left out."""
    work = Workdir.open(steered)
    others = [{**row, "user_id": f"other {row['user_id']}"} for row in tiny.rows(users=4, seed=5)]
    others[3]["response_a"] += " word1" * 200
    others += tiny.rows(users=1)  # who was trained on
    path = tiny.write_rows(tmp_path / "others.jsonl", others)
    known, before = len(work.dataset.texts), work
    work, split = work.with_people(str(path))
    task = work.task
    assert (len(before.dataset.texts), len(before.task.reference), len(before.task.tokens.lengths)) == (known,) * 3
    assert "were trained on and are left out: u0" in caplog.text
    assert "1 choices about texts that are too long are left out" in caplog.text
    assert len(work.dataset.texts) == len(task.reference) == len(task.tokens.lengths) == len(work.dataset.features)
    mine = np.unique(np.asarray(split.table.chosen)[np.asarray(split.table.mask)])
    assert mine.min() >= known
    assert (task.tokens.lengths[mine] > 0).all()
    one = int(mine[0])
    settings = task.config.policy
    alone = tokenise(task.base, [work.dataset.texts[one]], settings.max_length, settings.truncate)
    np.testing.assert_allclose(table_log_probs(task.base, alone)[0], task.reference[one], atol=1e-4)
    copied = tmp_path / "run"
    shutil.copytree(steered, copied)
    report = evaluate_workdir(copied, str(path), ks=(0, 2))
    assert (copied / "report-others" / "report.html").is_file()
    assert report["data"] == str(path)
    assert report["users"]["scored"] == 4
    assert report["k"] == [0, 2]
    assert not report.get("specialist")
    assert any("only 4 people" in warning for warning in report["warnings"])
