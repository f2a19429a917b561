"""What a policy takes over from the reward model whose encoder it starts from, and what does not fit it."""

import copy
import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.styles import get_config
from fssa_jax.config import BayesEncoder, NpBtl, SetEncoder, Styles
from fssa_jax.data.dataset import arrays_of
from fssa_jax.experiment.make import make
from fssa_jax.experiment.warm_start import load_people, take_over_settings, teacher_variables
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.people.person import PersonModel
from fssa_jax.tasks.task import MAIN, POPULATION
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


@pytest.fixture(scope="module")
def ranked(made, tmp_path_factory):
    """The work directory of a policy that will be trained on ranked pairs."""
    path = tmp_path_factory.mktemp("ranked") / "run"
    wanted = {"encoder.pairs": "ranked", "encoder.distil": 1.0}
    return make(change(copy.deepcopy(made.config), wanted), path)


def test_ranked_pairs_are_what_the_reward_model_thinks_of_all_that_a_person_chose(ranked, made):
    table, before = ranked.task.ranked, made.dataset.splits["train"].table
    np.testing.assert_array_equal(table.chosen[:, 0], before.chosen[:, 0])
    prompts = np.array([prompt for prompt, _ in made.dataset.texts])
    real = np.asarray(table.mask)[:, 1]
    asked = [prompts[np.asarray(side)[:, 1][real]] for side in (before.chosen, table.chosen, table.rejected)]
    np.testing.assert_array_equal(asked[1], asked[0])
    np.testing.assert_array_equal(asked[2], asked[0])

    # All choices of a person as one context, through the published functions.
    teacher = Workdir.open(Path(made.config.encoder.init_from))
    model, variables = teacher.task.model(), {"params": teacher.trained()[0]["params"]}
    texts, person = made.dataset.texts, PersonModel(teacher.task, model, model, variables)
    users = range(len(before.chosen))
    rows = [[(u, p, i) for p in (0, 1) for i in range(before.count[u, p])] for u in users]
    pairs = [[(texts[before.chosen[at]], texts[before.rejected[at]]) for at in mine] for mine in rows]
    q = person.infer_people([[(*good, bad[1]) for good, bad in mine] for mine in pairs])
    z = np.asarray(q.mean)
    ids = np.stack([np.asarray(side)[:, 1] for side in (table.chosen, table.rejected)], -1)
    read, features = jnp.asarray(ids.reshape(len(ids), -1)), jnp.asarray(made.dataset.features)
    worth = model.apply(variables, read, jnp.asarray(z[None]), features, method="rewards")
    apart = np.diff(-np.asarray(worth)[0, ..., 0].reshape(ids.shape), axis=-1)[..., 0][real]
    assert (apart > 0).mean() > 0.5
    assert apart.mean() > 0


def test_only_the_steered_policy_learns_from_ranked_pairs_and_reads_none(ranked):
    task, keys = ranked.task, jax.random.split(jax.random.key(0), 200)
    tables = task.tables("train")
    assert tables.ranked is not None
    # Pairs that nobody was shown, so that it shows where a pair is from.
    marked = dataclasses.replace(tables.ranked, chosen=jnp.full_like(tables.ranked.chosen, -5))
    tables = dataclasses.replace(tables, ranked=marked)
    main, population = (task.draw(name)(keys, tables).episode for name in (MAIN, POPULATION))
    assert (main.targets.chosen[main.targets.mask] == -5).all()
    assert (main.context.chosen >= 0).all()
    assert (population.targets.chosen >= 0).all()
    assert task.tables("val").ranked is None


def test_ranked_pairs_are_kept_and_their_file_is_checked(ranked, tmp_path):
    again = Workdir.open(ranked.path)
    assert_same(arrays_of(again.task.ranked), arrays_of(ranked.task.ranked))
    copied = shutil.copytree(ranked.path, tmp_path / "run")
    arrays = dict(np.load(copied / "ranked.npz"))
    np.savez(copied / "ranked.npz", **(arrays | {"chosen": arrays["chosen"][::-1]}))
    assert "ranked.npz: missing or damaged (its checksum differs)" in complaint(Workdir.open, copied)
    (copied / "ranked.npz").unlink()
    assert "ranked.npz: missing or damaged" in complaint(Workdir.open, copied)


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
