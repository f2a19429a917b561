"""Other people's rows: appended to the data set of a trained model, which stays what it was."""

import numpy as np
import pytest

from configs import rows
from fssa_jax.data.new_people import with_people
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from tests import tiny


def records(first: int, users: int, texts: int, group: str) -> list[dict]:
    """People who judge pairs of the same few texts."""
    rng = np.random.default_rng(first)
    text = [f"word{i % 6} word{i // 6 + 6}" for i in range(texts)]
    return [
        {
            "user_id": f"u{u}",
            "prompt": "",
            "response_a": text[a],
            "response_b": text[b],
            "choice": int(a < b),
            "group": group,
        }
        for u in range(first, first + users)
        for a, b in (rng.choice(texts, 2, replace=False) for _ in range(14))
    ]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """The work directory of a model with an embedding per text."""
    directory = tmp_path_factory.mktemp("learnt")
    config = rows.get_config("np_btl")
    config.data.path = str(tiny.write_rows(directory / "rows.jsonl", records(0, 24, 20, "here")))
    config.data.components, config.model.width = 4, 6
    train_ = {"steps": 4, "steps_per_call": 2, "validate_every": 2, "checkpoint_every": 2, "population_steps": 2}
    for name, value in {**train_, "factor_steps": 3, "users": 6}.items():
        setattr(config.train, name, value)
    config.evaluate.k, config.evaluate.draws, config.evaluate.bootstrap = (0, 1, 3), 1, 20
    train(config, directory / "run")
    return directory / "run"


def test_people_with_new_texts_and_groups_are_scored_by_a_model_with_learnt_texts(learnt, tmp_path):
    others = tiny.write_rows(tmp_path / "others.jsonl", records(100, 5, 26, "elsewhere"))
    before = Workdir.open(learnt)
    assert before.task.model().learnt_texts == 20
    wider, _ = before.with_people(str(others))
    assert len(wider.dataset.texts) > 20
    assert wider.task.model().learnt_texts == 20
    report = evaluate_workdir(learnt, data=str(others))
    assert report["users"]["scored"] == 5
    assert not any("unfinished" in warning for warning in report["warnings"])


def test_the_data_set_of_the_model_stays_what_it_was(learnt, tmp_path):
    others = tiny.write_rows(tmp_path / "others.jsonl", records(100, 5, 26, "elsewhere"))
    work = Workdir.open(learnt)
    wider, split = with_people(work.dataset, work.config.data, str(others))
    assert work.dataset.groups == ["here"]
    assert wider.groups == ["here", "elsewhere"]
    assert set(np.asarray(split.table.group)) == {1}
    assert (wider.known_texts, work.dataset.known_texts) == (20, 20)
