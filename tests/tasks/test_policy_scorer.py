"""What a policy implies about choices: log-ratios, one by one and in calls of any size."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.scoring import text_log_probs
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.tasks import policy_scorer
from fssa_jax.tasks.policy import TEACHER
from tests import tiny_policy


@pytest.fixture(scope="module")
def work(steered):
    return Workdir.open(steered)


@pytest.fixture(scope="module")
def moved(work):
    return tiny_policy.moved(work.trained()[0])


def scorer_of(task, name="main"):
    return task.scorer(name, task.dataset.splits["test"])


def some_episodes(work, number: int = 4):
    return episodes_of(work.dataset.splits["test"], np.arange(number), 0, 3)


def test_implied_preferences_are_the_log_ratios_one_by_one(work, moved):
    """Against a forward pass for each person and response by itself; contexts of every size, padding or not."""
    task, episodes = work.task, some_episodes(work)
    objective, base, conditioner = task.config.objective, task.base, task.conditioner()
    tables = task.tables("test")
    found = scorer_of(task).predictor(moved).predict(episodes, (0, 3))
    log_p = found.log_p
    assert found.mean.shape[:2] == (2, 4)
    for i, k in enumerate((0, 3)):
        q = conditioner.apply(moved, truncate_context(episodes, k), tables.features, method="latent_of")
        for user in range(4):
            adapters = conditioner.apply(moved, q.mean[user : user + 1], method="adapt")
            pair = [int(side[user, 0]) for side in (episodes.targets.chosen, episodes.targets.rejected)]
            ratio = [
                float(text_log_probs(base.decoder, base.variables, tables.texts, jnp.array([t]), adapters)[0])
                - task.reference[t]
                for t in pair
            ]
            expected = -np.logaddexp(0, -objective.beta * (ratio[0] - ratio[1]))
            assert log_p[i, user, 0] == pytest.approx(expected, abs=2e-4)
            rewards = [found.named[f"rewards/{side}"][i, user, 0] for side in ("chosen", "rejected")]
            np.testing.assert_allclose(rewards, objective.beta * np.array(ratio), atol=2e-4)
    assert np.abs(log_p[0] - log_p[1]).max() > 1e-3


def test_implied_preferences_are_per_token_where_the_objective_is(work, moved):
    task, episodes = work.task, some_episodes(work)
    objective = dataclasses.replace(task.config.objective, length_normalised=True)
    per_token = dataclasses.replace(task, config=dataclasses.replace(task.config, objective=objective))
    plain, token = (scorer_of(t).predictor(moved).predict(episodes, (3,)).named for t in (task, per_token))
    lengths = task.tokens.ends - task.tokens.starts
    assert len(set(lengths[np.asarray(episodes.targets.chosen)].ravel().tolist())) > 1
    for side in ("chosen", "rejected"):
        tokens = lengths[np.asarray(getattr(episodes.targets, side))]
        np.testing.assert_allclose(token[f"rewards/{side}"][0] * tokens, plain[f"rewards/{side}"][0], atol=1e-4)
        np.testing.assert_allclose(token[f"logps/{side}"], plain[f"logps/{side}"], atol=1e-3)


def test_what_was_not_offered_has_no_part_in_the_score(work, moved):
    """Of lists that are padded to the longest."""
    episodes = some_episodes(work, 2)
    ids = np.random.default_rng(0).integers(0, len(work.dataset.texts), (*episodes.targets.mask.shape, 2))
    listed = np.broadcast_to([True, False], ids.shape)
    predictor = scorer_of(work.task).predictor(moved)

    def scored(number):
        targets = dataclasses.replace(episodes.targets, others=ids[..., :number], listed=listed[..., :number])
        return predictor.predict(dataclasses.replace(episodes, targets=targets), (3,))

    short, padded = scored(1), scored(2)
    np.testing.assert_allclose(padded.log_p, short.log_p, atol=1e-4)
    np.testing.assert_allclose(padded.log_best_other, short.log_best_other, atol=1e-4)
    for name, values in short.named.items():
        np.testing.assert_allclose(padded.named[name], values, atol=1e-3, err_msg=name)


def test_what_only_rounding_parts_is_a_tie(work):
    """A policy that is its base prefers nothing: accuracy ½, not the sign of what sums were rounded to."""
    variables = work.task.start("main", {TEACHER: teacher_variables(work.config)})  # the adapters are the identity
    found = scorer_of(work.task).predictor(variables).predict(some_episodes(work), (0, 3))
    assert np.abs(found.named["rewards/chosen"]).max() > 0
    np.testing.assert_array_equal(preference_accuracy(jnp.asarray(found.log_p)), 0.5)


def test_however_texts_are_cut_into_calls_the_ratios_are_the_same(work, moved, monkeypatch):
    """Many small calls, the last one of each length filled up, and few people a call where adapters are large."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 8)).astype(np.float32)
    people, ids = rng.integers(0, 3, 29), rng.integers(0, len(work.dataset.texts), 29)

    def ratios(tokens=None):
        scorer = scorer_of(work.task)
        scorer._budget = tokens or scorer._budget
        return scorer.log_ratios(moved, z, people, ids)

    whole = ratios()
    assert np.abs(whole).min() > 0
    np.testing.assert_allclose(ratios(200), whole, atol=1e-4)
    monkeypatch.setattr(policy_scorer, "_ADAPTER_BYTES", 1)  # one sequence a call
    np.testing.assert_allclose(ratios(), whole, atol=1e-4)
    assert scorer_of(work.task).log_ratios(moved, z, people[:0], ids[:0]).shape == (0,)


def test_the_memory_of_adapters_grows_with_the_device(monkeypatch):
    class Device:
        memory: ClassVar = None

        def memory_stats(self):
            return self.memory

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert policy_scorer._adapter_budget() == 2**30  # a CPU does not say what it has
    monkeypatch.setattr(Device, "memory", {"bytes_limit": 80 * 2**30})
    assert policy_scorer._adapter_budget() == 5 * 2**30


def test_the_reference_is_the_base_itself(work):
    base, texts = work.task.base, work.task.tables("test").texts
    own = text_log_probs(base.decoder, base.variables, texts, jnp.arange(5))
    np.testing.assert_allclose(own, work.task.reference[:5], atol=1e-4)
