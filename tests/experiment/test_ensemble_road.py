"""An ensemble from the rows to the report, and to new people."""

import numpy as np
import pytest

import fssa_jax
from fssa_jax.experiment import choose
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.models.ensemble import Ensemble, separate
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import check_lists
from tests import tiny, tiny_policy
from tests.mistakes import complaint


def settings(directory, members):
    config = tiny.auto_config(directory / "rows.jsonl", specialist_steps=0)
    config.model.members, config.train.steps = members, 100
    return config


@pytest.fixture(scope="module", params=["seeds", "kinds"])
def workdir(tmp_path_factory, request):
    """Two models of different seeds, or of different kinds, whose average is taken for better."""
    directory = tmp_path_factory.mktemp(request.param)
    tiny.write_rows(directory / "rows.jsonl", tiny.rows(users=40))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "kinds":
            patch.setattr(choose, "_shares", lambda *_: {"kinds × 10": 0.7, "features": 0.3})
        else:
            patch.setattr(choose, "_shares", lambda *_: {"features": 1.0})
        patch.setattr(choose, "_is_better", lambda *_: True)
        train(settings(directory, 2 if request.param == "seeds" else 1), directory / "run")
    return directory / "run"


def test_the_choice_is_made_with_single_models_and_the_ensemble_is_trained(workdir):
    work = Workdir.open(workdir)
    assert isinstance(work.task, RewardTask)
    if work.config.model.parts:
        assert work.run["chosen"]["name"] == "kinds × 10 + features"
        assert work.run["chosen"]["shares"] == {"kinds × 10": 0.7, "features": 0.3}
        assert [part.weight for part in work.config.model.parts] == [0.7, 0.3]
    else:
        assert work.config.model.members == 2
    assert isinstance(work.task.model(), Ensemble)
    variables, _ = work.trained()
    first, second = separate({"params": variables["params"]})
    kernel = first["params"]["target_encoder"]["dense_0"]["kernel"]
    assert not np.allclose(kernel, second["params"]["target_encoder"]["dense_0"]["kernel"])
    report = evaluate_workdir(workdir)
    assert report["accuracy"]["3"]["mean"] > 0.9  # two kinds of people who want the opposite
    assert report["gain"]["3"]["mean"] > 0.2
    assert report["control_gain"]["3"]["mean"] < report["gain"]["3"]["mean"]


def test_the_same_command_trains_nothing_and_another_ensemble_is_refused(workdir):
    members = Workdir.open(workdir).config.model.members
    before = (workdir / "metrics.jsonl").read_bytes()
    train(settings(workdir.parent, members), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    said = complaint(train, settings(workdir.parent, 3), workdir)
    assert f"was trained with config.model.members={members}, not 3" in said


def test_lists_are_refused_where_any_of_the_models_reads_likes(workdir):
    model = Workdir.open(workdir).config.model
    check_lists(model, "here")
    if model.parts:
        model.parts[1].observations = ("responses",)
        assert "choices among more than two responses" in complaint(check_lists, model, "here")


def test_a_person_is_read_by_both(workdir):
    model = fssa_jax.load(workdir)
    short, long = "word1 word2 word3", " ".join(f"word{i}" for i in range(9))
    choices = [(f"question {i}", long, short) for i in range(3)]
    latent = model.infer(choices)
    assert latent.mean.shape == (1, model.reward.latent_dim)
    assert latent.points.shape[1] > model.task.config.evaluate.samples
    rewards = model.score(latent, [("question 9", long), ("question 9", short)])
    other = model.score(model.infer([(p, b, a) for p, a, b in choices]), [("question 9", long), ("question 9", short)])
    assert rewards[0] - rewards[1] > other[0] - other[1]


def test_a_policy_reads_people_with_both(workdir, tmp_path):
    data = workdir.parent / "rows.jsonl"
    config = tiny_policy.config(data, tiny_policy.base(tmp_path / "base"), workdir)
    train(config, tmp_path / "policy")
    policy = fssa_jax.load(tmp_path / "policy")
    choices = [("question 0", "word1 word2", "word3"), ("question 1", "word4", "word5 word6")]
    read = fssa_jax.load(workdir).infer(choices).mean
    np.testing.assert_allclose(policy.infer(choices).mean, read, rtol=1e-4, atol=1e-6)
    assert not policy.task.conditioner().sampled  # policies read people at the mean of z
