"""The one step: a batch is a function of (seed, step), parts add up, averages and statistics are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.tasks.reward import reward_loss
from fssa_jax.train.state import TrainState, learning_rates, make_optimizer, start_state
from fssa_jax.train.step import Batch, draw_rows, make_step, many_steps
from tests import tiny

USERS = 6
TABLE = jnp.arange(40.0)


def draw(keys, tables):
    """A number of the table per user."""
    return {"x": tables[jax.vmap(lambda key: jax.random.randint(key, (), 0, 40))(keys)]}


def loss(variables, batch: Batch, key):
    """Mean of (w − x)², with the mean of x as a running statistic."""
    del key
    x = batch.rows["x"]
    value = ((variables["params"]["w"] - x) ** 2).mean()
    return value, {"loss": value, "batch_stats": {"mean": x.mean()}}


def begin(average=False) -> tuple[TrainState, optax.GradientTransformation]:
    optimizer = optax.sgd(0.1)
    variables = {"params": {"w": jnp.zeros(())}, "batch_stats": {"mean": jnp.zeros(())}}
    return start_state(variables, optimizer, average), optimizer


def test_a_step_descends_on_the_rows_of_its_seed_and_number():
    state, optimizer = begin()
    step = make_step(loss, draw, optimizer, users=USERS, seed=3)
    for number in range(2):
        rows, _ = draw_rows(draw, 3, number, USERS, TABLE)
        before = float(state.params["w"])
        state, metrics = jax.jit(step)(state, TABLE)
        mean = float(rows["x"].mean())
        assert float(state.params["w"]) == pytest.approx(before - 0.2 * (before - mean), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(abs(2 * (before - mean)), rel=1e-5)
        assert float(state.batch_stats["mean"]) == pytest.approx(mean)
    first, second, other = (draw_rows(draw, *of, USERS, TABLE)[0]["x"] for of in ((3, 0), (3, 1), (4, 0)))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_add_up_to_the_whole(parts):
    state, optimizer = begin()
    whole, once = make_step(loss, draw, optimizer, users=USERS, seed=0)(state, TABLE)
    cut, twice = make_step(loss, draw, optimizer, users=USERS, seed=0, accumulate=parts)(state, TABLE)
    np.testing.assert_allclose(cut.params["w"], whole.params["w"], rtol=1e-6)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(twice[name], once[name], rtol=1e-6)


def test_the_average_follows_the_parameters_and_predicts_in_their_place():
    state, optimizer = begin(average=True)
    step = make_step(loss, draw, optimizer, users=USERS, seed=0, average_decay=0.5)
    after, _ = step(state, TABLE)
    w = float(after.params["w"])
    assert float(after.average["w"]) == pytest.approx(0.9 * w, rel=1e-6)  # a short memory at first: 1/10
    assert after.variables["params"] is after.average
    assert after.trained["params"] is after.params


def test_many_steps_are_the_steps_one_by_one():
    state, optimizer = begin()
    step = make_step(loss, draw, optimizer, users=USERS, seed=0)
    together, metrics = many_steps(step, 3)(state, TABLE)
    losses = []
    for _ in range(3):
        state, one = step(state, TABLE)
        losses.append(float(one["loss"]))
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(together.params["w"], state.params["w"], rtol=1e-6)
    assert int(together.step) == 3


def test_a_reward_model_accumulates_too(tmp_path):
    task = tiny.task(tmp_path)
    optimizer = optax.sgd(1.0)
    state = start_state(task.start("main", {}), optimizer)
    results = []
    for parts in (1, 4):
        step = make_step(
            reward_loss(task.model(), task.config.objective),
            task.draw("main"),
            optimizer,
            users=8,
            seed=0,
            accumulate=parts,
        )
        results.append(jax.jit(step)(state, task.tables("train")))
    (whole, once), (cut, parts) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, cut.params)
    np.testing.assert_allclose(parts["loss"], once["loss"], rtol=1e-5)


def test_the_learning_rate_warms_up_and_decays(tmp_path):
    config = tiny.config()
    rates = learning_rates(config.optim, 10)
    with jax.numpy_dtype_promotion("standard"):
        assert float(rates(0)) == 0
        assert float(rates(config.optim.warmup_steps)) == pytest.approx(config.optim.learning_rate)
        assert float(rates(10)) == pytest.approx(0, abs=1e-9)
    assert make_optimizer(config.optim, 10).init({"w": jnp.zeros(2)})
