"""A policy on people whose wishes are known: true rewards, movement, limits and the blend, in its report."""

import dataclasses
import json

import numpy as np
import pytest

from configs.styles import get_config
from fssa_jax.config import SftConfig, Styles
from fssa_jax.data import build
from fssa_jax.data.benchmarks import styles
from fssa_jax.data.dataset import Truth, texts_of
from fssa_jax.experiment import make, warm_start
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.tasks.sft import SftTask, asked_prompts
from tests import tiny_policy

KS = ("0", "1", "3")


def few_styles():
    """`styles` with few people, and no texts but those that they judge."""
    whole = build.styles_dataset(Styles(train_users=6, eval_users=4), context=3, targets=4)
    used = np.unique(np.concatenate([texts_of(split.table) for split in whole.splits.values()]))
    place = np.zeros(len(whole.texts), np.int32)
    place[used] = np.arange(len(used))
    for split in whole.splits.values():
        table = split.table
        split.table = dataclasses.replace(table, chosen=place[table.chosen], rejected=place[table.rejected])
    assert whole.truth is not None
    # Short ones: the tokenizer of the tests has a token for nearly every letter.
    texts = [(whole.texts[i][0][-20:], f"{n} {whole.texts[i][1][:20]}") for n, i in enumerate(used)]
    truth = Truth(whole.truth.rewards[used], whole.truth.log_prior)
    return dataclasses.replace(whole, texts=texts, features=whole.features[used], truth=truth)


@pytest.fixture(scope="module")
def written(tiny_base, tmp_path_factory):
    """(directory, report) of a policy of two steps."""
    config = tiny_policy.config("", tiny_base, steps=2, specialist_steps=0)
    config.data = Styles(train_users=6, eval_users=4)
    config.evaluate.targets, config.evaluate.in_context_users = 4, 0
    config.policy.max_length = 256
    directory = tmp_path_factory.mktemp("styles") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_start, "load_dataset", lambda *arguments: few_styles())
        train(config, directory)
    return directory / "report", evaluate_workdir(directory)


def test_the_limit_and_the_population_stand_beside(written):
    _, report = written
    for name in ("bayes", "bayes_steering", "steering", "population", "scrambled_steering"):
        assert set(report[name]) == set(KS), name
    assert report["bayes_steering"]["0"]["mean"] == pytest.approx(0, abs=1e-6)


def test_the_latent_stands_beside_the_exact_posterior(written):
    _, report = written
    latent = report["latent"]
    for name in ("bayes", "bayes_scrambled"):
        assert latent[name]["0"] == pytest.approx(0, abs=1e-6)
        assert 0 < latent[name]["1"] < latent[name]["3"] < 5


def test_what_is_written_is_judged_by_the_wishes_of_each_person(written):
    directory, report = written
    assert report["generation"]["people"] == 4
    shares = []
    for out in report["generation"]["policy"].values():
        assert -1 <= out["movement"] <= 1
        for name in ("win_rate_over_base", "win_rate_over_population", "well_formed"):
            assert 0 <= out[name] <= 1, name
        assert out["bayes_reward_of_known"] <= 1
        shares.append((out["reward"], out["reward_of_known"]))
        # Who knows the person earns the same at every k.
        assert shares[-1][0] * shares[0][1] == pytest.approx(shares[0][0] * shares[-1][1], abs=1e-6)
        for key in ("movement", "reward", "well_formed"):
            assert np.isfinite(out[f"plain_{key}"])
        assert np.isfinite([out["reward"], out["kl"]]).all()
    people = [json.loads((directory / f"person_{x}.jsonl").read_text().splitlines()[0])["user_id"] for x in "ab"]
    wishes = [dict((word[1:], word[0]) for word in name.split(": ")[1].split()) for name in people]
    # Neighbours want the opposite.
    assert wishes[0].keys() == wishes[1].keys()
    assert all(wishes[0][name] != wishes[1][name] for name in wishes[0])


def test_the_page_has_movement_rewards_and_the_continuum(written):
    directory, report = written
    assert len(report["generation"]["blend"]["towards_first"]) == 5
    page = (directory / "report.html").read_text()
    assert "NaN" not in (directory / "report.json").read_text()
    for words in (
        "moves by",
        "true reward",
        "wins over base",
        "over population",
        "exact posterior, relative to optimal",
    ):
        assert words in page, words
    for picture in ("steering.png", "movement.png", "continuum.png"):
        assert (directory / picture).read_bytes().startswith(b"\x89PNG")


def test_a_base_reads_all_but_what_it_is_to_leave_out(written):
    directory, _ = written
    work = Workdir.open(directory.parent)

    def read(unread):
        config = SftConfig(data=work.config.data)
        config.train.unread = unread
        task = SftTask(config, work.dataset, work.task.base, work.task.tokens)
        return {*task.split_texts("train").tolist(), *task.split_texts("val").tolist()}

    mine = {name: set(texts_of(split.table).tolist()) for name, split in work.dataset.splits.items()}
    assert read("nothing") == set.union(*mine.values())
    assert read("topics") == mine["train"]
    asked = asked_prompts(work.dataset)
    left = {i for i in read("nothing") if work.dataset.texts[i][0] not in asked}
    assert read("targets") == left < read("nothing")
    assert left & mine["test"]  # it knows of the topics from other prompts


def test_the_base_leaves_out_the_prompts_of_the_people_of_the_reward_model(tmp_path):
    datasets = []
    for variant in ("sft", "np_btl"):
        config = get_config(variant)
        config.seed = config.data.split_seed = 3
        config.data.train_users, config.data.eval_users = 30, 20
        datasets.append(make._load(config, tmp_path))
    base, reward = (data.splits["test"].table for data in datasets)
    np.testing.assert_array_equal(base.chosen, reward.chosen)
    asked = asked_prompts(datasets[0])
    judged = {datasets[1].texts[i][0] for i in texts_of(reward, 1)}
    assert len(judged - asked) <= 2
    assert len(asked & judged) > 10
    # It has heard of every topic.
    assert {styles.topic_of(prompt) for prompt, _ in datasets[0].texts if prompt not in asked} == {
        styles.topic_of(prompt) for prompt, _ in datasets[0].texts
    }
