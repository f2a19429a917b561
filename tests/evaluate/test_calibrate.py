"""The calibration keeps what contexts are worth, and gives everybody the population where they are worth nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.evaluate import calibrate
from fssa_jax.evaluate.calibrate import Fitted, fit_calibration
from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import resolve
from tests import tiny


def fitted_on(tmp_path, noise: bool):
    task, variables = task_of(tmp_path, noise)
    return fit_calibration(task, [(variables, task.dataset.splits["val"])])


def task_of(tmp_path, noise: bool, alike: bool = False) -> tuple[RewardTask, dict]:
    """Two kinds of people, one kind, or people who choose at random; a model reads whether long answers were chosen."""
    rows = tiny.rows(users=90)
    if alike:
        rows = [row for row in rows if row["group"] == "long"]
    if noise:
        rng = np.random.default_rng(1)
        rows = [row | {"choice": int(rng.integers(2))} for row in rows]
    config = tiny.auto_config(tiny.write_rows(tmp_path / "rows.jsonl", rows))
    dataset = tiny.load_dataset(config)
    task = RewardTask(resolve(config, dataset, quiet=True), dataset)
    length = np.array([len(response.split()) for _, response in dataset.texts], np.float32)
    dataset.features = np.concatenate([(length[:, None] - 6) / 6, np.zeros((len(length), 7), np.float32)], axis=1)
    variables = task.start("main", {})
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    kernel = params["target_encoder"]["dense_0"]["kernel"]
    params["target_encoder"]["dense_0"]["kernel"] = kernel.at[0, 0].set(3.0)
    params["reward_head"] = variables["params"]["reward_head"]
    return task, {"params": params}


def test_choices_that_tell_something_keep_their_weight(tmp_path):
    found = fitted_on(tmp_path, noise=False)
    assert found.helps
    assert found.people == 9
    assert found.gain > 0.2
    assert (np.asarray(found.calibration.shrinkage) > 0.8).all()


def test_noise_gives_everybody_the_population(tmp_path):
    task, variables = task_of(tmp_path, noise=True)
    found = fit_calibration(task, [(variables, task.dataset.splits["val"])])
    assert not found.helps
    np.testing.assert_array_equal(found.calibration.shrinkage, [0, 0])
    split = task.dataset.splits["test"]
    episodes = episodes_of(split, np.arange(len(split.users)), 0, 3)
    predictor = task.predictor("main", split)({**variables, "calibration": found.calibration._asdict()})
    log_p = predictor.predict(episodes, (0, 3)).log_p
    np.testing.assert_allclose(log_p, np.log(0.5), atol=1e-5)  # the population has no opinion


@pytest.mark.parametrize("alike", [True, False])
def test_the_mean_of_the_prior_is_used_where_it_helps_people_without_choices(tmp_path, alike):
    """It says that people like long answers, which all of them or half of them do."""
    task, variables = task_of(tmp_path, noise=False, alike=alike)
    prior = variables["params"]["encoder"]["prior"]
    prior["mean"] = prior["mean"].at[0].set(1.0)
    found = fit_calibration(task, [(variables, task.dataset.splits["val"])])
    assert found.helps
    without = float(found.calibration.shrinkage_without)
    assert (without > 0.8) if alike else (without == 0)


def test_people_of_fewer_choices_count_as_what_they_have(tmp_path):
    """A third of the people have one choice, whatever k is asked for: their shrinkage is that of one choice."""
    task, variables = task_of(tmp_path, noise=False)
    split = task.dataset.splits["val"]
    count = np.asarray(split.table.count).copy()
    count[::3, 0] = 1
    split.table = dataclasses.replace(split.table, count=count)
    found, sizes = calibrate._parts_of_rewards(task, [(variables, split)])
    assert sizes[-1] > 1
    read = np.asarray(found[0][-1].count)
    np.testing.assert_array_equal(read, np.minimum(count[:, 0], sizes[-1]))
    g = jnp.where(jnp.asarray(read) == 1, 0.0, 1.0)
    log_p = calibrate._log_likelihood(found[0][-1], g, jnp.ones(len(read)))
    everybody = [
        calibrate._log_likelihood(found[0][-1], jnp.full(len(read), x), jnp.ones(len(read))) for x in (0.0, 1.0)
    ]
    np.testing.assert_allclose(log_p, jnp.where(g > 0, everybody[1], everybody[0]), rtol=1e-5)
    assert not np.allclose(everybody[0], everybody[1])


def test_some_of_many_people_are_drawn_at_random():
    some = calibrate._some(np.arange(1000), 100)
    assert len(set(some)) == 100
    assert some.max() > 900
    np.testing.assert_array_equal(calibrate._some(np.arange(7), 100), np.arange(7))


def test_a_calibration_goes_through_a_file(tmp_path):
    found = fitted_on(tmp_path, noise=False)
    again = Fitted.from_json(found.as_json())
    assert again.people == found.people
    jax.tree.map(np.testing.assert_array_equal, again.calibration, found.calibration)
    assert again.gain == pytest.approx(found.gain)
