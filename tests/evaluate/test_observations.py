"""Pairs, thumbs and ratings in one context: beside the exact posterior over all possible people."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax import BayesEncoder, Comparisons, RewardModel
from fssa_jax.config import Evaluation, NeuralProcess
from fssa_jax.data.benchmarks import styles
from fssa_jax.data.dataset import Truth, make_table
from fssa_jax.evaluate.bayes import bayes_predictions
from fssa_jax.evaluate.episodes import evaluation_episodes
from fssa_jax.evaluate.scores import Scores
from fssa_jax.ops import draw_episode
from fssa_jax.tasks.predictor import Predictions
from fssa_jax.tasks.reward import Tables, draw_people, reward_loss
from fssa_jax.tasks.reward_predictor import reward_predictor
from fssa_jax.train.step import Batch

CONTEXT, TARGETS, TRAINED, TESTED = 10, 12, 3000, 1500
THUMB, LEVELS = 0.4, (-1.8, -0.5, 0.6, 1.9)  # thresholds in nats


def attributes() -> np.ndarray:
    """(32, 5) the styles as ±½."""
    return np.array(list(np.ndindex(2, 2, 2, 2, 2)), np.float32) - 0.5


def truth() -> Truth:
    """Rewards of the 32 styles, and of the five thresholds after them, for each of the 243 kinds of people."""
    weights, log_prior = styles.PEOPLE.every()
    rewards = styles.PEOPLE.scale * attributes() @ weights.T
    thresholds = np.broadcast_to(np.array([THUMB, *LEVELS], np.float32)[:, None], (5, len(weights)))
    return Truth(np.concatenate([rewards, thresholds]).astype(np.float32), log_prior)


def features() -> np.ndarray:
    """The attributes, and an indicator of every threshold."""
    return np.block([[attributes(), np.zeros((32, 5))], [np.zeros((5, 5)), np.eye(5)]]).astype(np.float32)


def observations(rng: np.random.Generator, rewards: np.ndarray, kinds: str) -> np.ndarray:
    """(n, 2) ids, the chosen one first, of one person with these rewards, for kinds such as "pair thumb rating"."""
    out = []

    def choose(a: int, b: int) -> bool:
        first = rng.random() < 1 / (1 + np.exp(rewards[b] - rewards[a]))
        out.append((a, b) if first else (b, a))
        return first

    for kind in kinds.split():
        text, other = rng.choice(32, 2, replace=False)
        if kind == "pair":
            choose(text, other)
        elif kind == "thumb":
            choose(text, 32)
        else:  # thresholds are passed one after the other
            next((level for level in range(4) if not choose(text, 33 + level)), None)
    return np.array(out)[rng.permutation(len(out))]


def people(rng: np.random.Generator, number: int, targets: str):
    known = truth()
    kind = rng.choice(len(known.log_prior), number, p=np.exp(known.log_prior) / np.exp(known.log_prior).sum())
    mixed = "pair thumb rating " * 4
    choices = [
        [observations(rng, known.rewards[:, u], kinds)[:TARGETS] for kinds in (mixed, targets or mixed)] for u in kind
    ]
    return jax.tree.map(jnp.asarray, make_table(choices, kind.tolist()))


def test_the_thresholds_make_the_distribution_of_ratings():
    """Of a person who is indifferent: as the product of the ratios has it."""
    rng = np.random.default_rng(0)
    rewards = np.array([0.0] * 32 + [THUMB, *LEVELS])
    levels = [len(observations(rng, rewards, "rating")) for _ in range(4000)]
    passes = 1 / (1 + np.exp(np.array(LEVELS)))
    assert np.mean(np.array(levels) == 1) == pytest.approx(1 - passes[0], abs=0.03)
    assert np.mean(np.array(levels) == 2) == pytest.approx(passes[0] * (1 - passes[1]), abs=0.03)


def test_steering_is_of_pairs_alone():
    """Two people who disagree about a thumb and agree about a pair; then about both."""
    for disagree in (False, True):
        pairs = [[0, 1], [1, 0] if disagree else [0, 1]]
        thumbs = [[2, 32], [32, 2]]
        ids = jnp.asarray(np.stack([pairs, thumbs], axis=1))
        targets = Comparisons(ids[..., 0], ids[..., 1], jnp.ones((2, 2), bool))
        between_texts = np.asarray((targets.chosen < 32) & (targets.rejected < 32))
        scores = Scores((0,), np.asarray(targets.mask), targets, Evaluation(bootstrap=7), 0, between_texts)
        none = np.zeros((1, 2, 0))
        scores.add("", [Predictions(np.log(np.array([[[0.9, 0.2], [0.8, 0.3]]])), none, none, {})])
        steering = scores.report["steering"]
        assert (steering["0"]["mean"] == pytest.approx(1.0)) if disagree else (steering is None)


@pytest.mark.experiments
def test_pairs_thumbs_and_ratings_are_read_together_as_well_as_bayes_rule_does():
    rng = np.random.default_rng(1)
    known, vectors = truth(), jnp.asarray(features())
    trained, tested = people(rng, TRAINED, ""), people(rng, TESTED, "pair " * TARGETS)
    model = RewardModel(
        encoder=BayesEncoder(rounds=4, gaussian=True), width=7, target="linear", head="bilinear", population="linear"
    )
    loss = reward_loss(model, NeuralProcess(kind="predictive", kl_weight=0.0, samples=8))
    draw = draw_people(lambda key, t: draw_episode(key, t.choices, max_context=CONTEXT, max_targets=TARGETS))
    tables = Tables(trained, vectors)
    first = draw(jax.random.split(jax.random.key(0), 2), tables)
    variables = model.init(jax.random.key(0), first.episode, vectors)
    steps = 500
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, steps))

    @jax.jit
    def step(carry, key):
        params, state = carry
        rows = draw(jax.random.split(key, 128), tables)
        gradient = jax.grad(lambda p: loss({"params": p}, Batch(rows, tables), key)[0])(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    params = variables["params"]
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), steps))

    episodes = evaluation_episodes(0, 0, tested, jnp.arange(TESTED), max_context=CONTEXT)
    predictor = reward_predictor(model, vectors, 32)({"params": params})
    context = episodes.context
    only_pairs = (context.chosen < 32) & (context.rejected < 32)
    without = dataclasses.replace(episodes, context=dataclasses.replace(context, mask=context.mask & only_pairs))
    mask = np.asarray(episodes.targets.mask)
    limit, poorer = (bayes_predictions(known, e, (CONTEXT,)).hits[0][mask].mean() for e in (episodes, without))
    ours, fewer = (predictor.predict(e, (0, CONTEXT)).hits[:, mask].mean(1) for e in (episodes, without))
    print(limit, poorer, ours, fewer)
    assert limit > poorer + 0.03
    assert ours[1] > limit - 0.02
    assert fewer[1] < ours[1] - 0.02
