"""What a policy takes over from the reward model whose encoder it starts from, and what does not fit it."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from configs.styles import get_config
from fssa_jax.config import BayesEncoder, NpBtl, SetEncoder, Styles
from fssa_jax.experiment.make import make
from fssa_jax.experiment.warm_start import load_people, take_over_settings, teacher_variables
from fssa_jax.experiment.workdir import Workdir
from tests import tiny
from tests.mistakes import complaint
from tests.tiny_policy import change
from tests.trees import assert_same


@pytest.fixture(scope="module")
def made(steered):
    """The work directory of a policy that has been trained."""
    return Workdir.open(steered)


def test_the_encoder_starts_warm_and_stays_where_it_is_frozen(made):
    variables, _ = made.trained()
    assert_same(variables["params"]["reward"], teacher_variables(made.config)["params"])


def test_the_data_are_those_of_the_encoder_and_other_settings_are_refused(made, finished, tmp_path):
    directory, _ = finished
    reward = Workdir.open(directory / "run")
    assert made.dataset.splits["test"].users == reward.dataset.splits["test"].users
    assert made.config.data == reward.config.data
    wrong = change(copy.deepcopy(made.config), {"data.groups": ("long",)})
    message = complaint(make, wrong, tmp_path / "run")
    assert message.startswith("config.data.groups: ")
    assert "was trained with (), not ('long',)" in message
    wrong = change(copy.deepcopy(made.config), {"encoder.model.encoder.latent_dim": 5})
    message = complaint(make, wrong, tmp_path / "run")
    assert message.startswith("config.encoder.model.encoder.latent_dim: ")
    assert "was trained with 8, not 5" in message


def with_model(made, model):
    return dataclasses.replace(made.config, encoder=dataclasses.replace(made.config.encoder, model=model))


def test_a_default_is_no_wish_also_next_to_one(made):
    """The width of the encoder is left at its default, so it is taken over; what is given must be the teacher's."""
    same = with_model(made, NpBtl(encoder=SetEncoder(latent_dim=8, gaussian=True)))
    assert take_over_settings(same).encoder.model == made.config.encoder.model
    assert take_over_settings(with_model(made, NpBtl())).encoder.model == made.config.encoder.model
    other = with_model(made, NpBtl(encoder=SetEncoder(latent_dim=5, gaussian=True)))
    assert complaint(take_over_settings, other).startswith("config.encoder.model.encoder.latent_dim: ")


def test_another_kind_of_encoder_is_refused(made):
    message = complaint(take_over_settings, with_model(made, NpBtl(encoder=BayesEncoder())))
    assert message.startswith("config.encoder.model.encoder.kind: ")
    assert "was trained with 'SetEncoder', not 'BayesEncoder'" in message


def test_another_kind_of_data_is_taken_for_no_wish_where_it_names_no_path(made):
    """Rows without a path are the teacher's people, whatever those are; a benchmark is one of its own."""
    config = copy.deepcopy(made.config)
    config.data.path = ""
    assert take_over_settings(config).data == made.config.data
    styles = dataclasses.replace(config, data=Styles())
    assert take_over_settings(styles).data == Styles()


def test_who_is_held_out_must_not_have_trained_the_encoder(finished, made, tmp_path):
    directory, _ = finished
    rows = tmp_path / "others.jsonl"
    rows.write_text((directory / "rows.jsonl").read_text())
    config = change(copy.deepcopy(made.config), {"data.path": str(rows), "data.split_seed": 3, "data.features": "auto"})
    assert "people who are held out here" in complaint(make, config, tmp_path / "run")


def test_whom_the_encoder_has_met_in_other_rows_is_nobody_new(finished, made, tmp_path, caplog):
    directory, _ = finished
    mine = [{**row, "user_id": f"mine {row['user_id']}"} for row in tiny.rows(seed=3)]
    path = str(tiny.write_rows(tmp_path / "mine.jsonl", mine))
    config = change(copy.deepcopy(made.config), {"data.path": path, "data.features": "auto"})
    make(config, tmp_path / "run")
    work = Workdir.open(tmp_path / "run")
    theirs = Workdir.open(directory / "run").dataset.splits
    work, split = work.with_people(str(directory / "rows.jsonl"))
    assert set(split.users) == set(theirs["test"].users)
    assert "were trained on and are left out" in caplog.text


def test_a_benchmark_has_the_same_people_with_and_without_an_encoder():
    """Cold and warm policies are scored on the same choices: the size of a batch does not make the data."""
    config = get_config("dpo")
    config.data.train_users, config.data.eval_users, config.evaluate.targets = 10, 10, 12
    data = load_people(config, Path("nowhere"))
    reward = get_config("np_btl")
    reward.data = config.data
    theirs = tiny.load_dataset(reward)
    for name in ("chosen", "rejected", "count"):
        np.testing.assert_array_equal(
            getattr(data.splits["test"].table, name), getattr(theirs.splits["test"].table, name)
        )


def test_an_encoder_of_another_feature_size_is_named(finished, made, tmp_path):
    directory, _ = finished
    config = copy.deepcopy(made.config)
    rows = tmp_path / "others.jsonl"
    rows.write_text((directory / "rows.jsonl").read_text())
    config.data.path, config.data.components = str(rows), 5
    message = complaint(make, config, tmp_path / "run")
    assert "reads features of width 9, these data have width 6" in message
