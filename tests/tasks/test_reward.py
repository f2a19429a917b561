"""What a configuration makes of a data set: learnt texts where people judge the same texts, features elsewhere."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import rows, synthetic
from fssa_jax.config import DiscretePrior, Dpl, Part, check
from fssa_jax.data.dataset import seen_in_training
from fssa_jax.models.ensemble import separate
from fssa_jax.ops.factorise import factorise, observed_responses
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import make_model, resolve
from fssa_jax.train.step import Batch
from tests import tiny
from tests.mistakes import complaint


def same_texts(users=24):
    """Everybody judges pairs of the same few texts."""
    rng = np.random.default_rng(0)
    text = [f"word{i % 6} word{i // 6 + 6}" for i in range(30)]
    return [
        {"user_id": f"u{u}", "prompt": "", "response_a": text[a], "response_b": text[b], "choice": 0}
        for u in range(users)
        for a, b in (rng.choice(30, 2, replace=False) for _ in range(16))
    ]


@pytest.mark.parametrize(("records", "learnt"), [(same_texts(), "yes"), (tiny.rows(), "no")], ids=["same", "new"])
def test_the_rows_decide_what_is_known_of_a_text(tmp_path, records, learnt):
    config = rows.get_config("np_btl")
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", records))
    dataset = tiny.load_dataset(config)
    resolved = resolve(config, dataset)
    check(resolved)
    assert config.model.learn_texts == "auto"
    assert resolved.model.learn_texts == learnt
    assert resolve(resolved, dataset) == resolved
    model = make_model(resolved.model, dataset)
    assert model.learnt_texts == (len(dataset.texts) if learnt == "yes" else 0)
    assert model.target == ("none" if learnt == "yes" else "linear")
    assert bool(resolved.train.factor_steps) == (learnt == "yes")


@pytest.mark.parametrize("variant", ["np_btl_attention", "np_btl"])
def test_learnt_texts_start_from_the_factorisation_for_either_encoder(variant, tmp_path):
    config = rows.get_config(variant)
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", same_texts()))
    config.model.width, config.train.factor_steps = 8, 5
    if variant == "np_btl_attention":
        config.model.encoder.width = config.model.encoder.latent_dim = 8
    dataset = tiny.load_dataset(config)
    config = resolve(config, dataset)
    check(config)
    started = RewardTask(config, dataset).start("main", {})["params"]
    user, text, liked = observed_responses(dataset.splits["train"].table)
    sizes = {"users": len(dataset.splits["train"].table.chosen), "texts": len(dataset.texts), "width": 8, "steps": 5}
    factors, _ = factorise(jax.random.key(config.seed), *map(jnp.asarray, (user, text, liked)), **sizes)
    seen = np.asarray(seen_in_training(dataset))
    np.testing.assert_allclose(started["text_embedding"]["embedding"][seen], factors[seen], atol=1e-6)
    assert ("text_offset" in started) == (variant == "np_btl")


def test_contexts_and_targets_are_cut_to_what_there_is(tmp_path):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()), max_context=50, targets=60)
    resolved = resolve(config, tiny.load_dataset(config))
    assert (resolved.train.max_context, resolved.train.targets) == (7, 7)
    assert (config.train.max_context, config.train.targets) == (50, 60)


def test_the_three_models_that_are_compared(tmp_path):
    task = tiny.task(tmp_path)
    assert task.names == ("population", "main", "specialist")
    main, population, specialist = (task.model(name) for name in ("main", "population", "specialist"))
    assert (main.latent, population.latent, specialist.latent) == ("context", "none", "group")
    assert specialist.groups == 2
    assert main.width == specialist.width == task.config.model.width


def test_the_published_split_is_trained_on_its_own_training_pairs():
    config = synthetic.get_config("np_btl")
    config.data.published = True
    dataset = tiny.load_dataset(config)
    task = RewardTask(config, dataset)
    data = task.tables("train")
    assert 15_900 < len(data.choices) < 16_100
    episode = task.draw("main")(jax.random.split(jax.random.key(0), 1), data).episode
    values = np.unique(np.asarray(data.choices))
    assert np.isin(np.asarray(episode.targets.chosen), values).all()
    held_out = dataset.features[np.asarray(dataset.splits["test"].table.chosen)[:, 1]]
    assert np.isin(held_out, values).mean() < 0.01  # float32 numbers meet by chance


def loss_of(task, variables, key=0):
    rows = task.draw("main")(jax.random.split(jax.random.key(key), 4), task.tables("train"))
    return float(task.loss("main")(variables, Batch(rows, task.tables("train")), jax.random.key(1))[0])


def test_penalties_are_part_of_the_loss(tmp_path):
    config = rows.get_config("np_btl")
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", same_texts()))
    config.model.width, config.train.factor_steps, config.model.text_dropout = 8, 5, 0.0
    config.model.response, config.model.keep_population = "linear", False
    dataset = tiny.load_dataset(config)
    config = resolve(config, dataset)
    variables = jax.tree.map(lambda x: x + 0.1, RewardTask(config, dataset).start("main", {}))
    of = {"text_penalty": "text_embedding", "text_bias_penalty": "text_bias", "response_penalty": "target_encoder"}

    def loss(weights=None):
        for name in of:
            setattr(config.objective, name, (weights or {}).get(name, 0.0))
        return loss_of(RewardTask(config, dataset), variables)

    for name, part in of.items():
        squares = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(variables["params"][part]))
        assert loss({name: 0.3}) - loss() == pytest.approx(0.15 * squares, rel=2e-3)
    config.model.keep_population = True
    variables["params"]["population_log_scale"] = jnp.zeros(())
    variables["params"]["reward_head"]["latent"].pop("bias")
    assert loss({"text_bias_penalty": 0.7}) == loss()  # it is not trained, so the penalty must not move it


def test_choices_among_several_are_trained_on_as_one_observation(tmp_path):
    """From a file of lists to a step; likes are not read from them, and DPL is refused."""
    rng = np.random.default_rng(0)
    records = [
        {"user_id": f"u{u}", "responses": [f"word{t} word{t % 3}" for t in rng.permutation(9)[:n]], "choice": 0}
        | {"situation": str(i)}
        for u in range(24)
        for i, n in enumerate((4, 3, 2, 4, 4, 3))
    ]
    config = rows.get_config("np_btl")
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", records))
    config.data.components, config.data.features = 4, "tfidf"
    dataset = tiny.load_dataset(config)
    table = dataset.splits["train"].table
    assert table.others.shape[-1] == 2
    assert (np.asarray(table.count) == 3).all()  # situations, not texts, are divided
    config = resolve(config, dataset)
    assert config.model.encoder.observations == ("difference",)
    task = RewardTask(config, dataset)
    variables = task.start("main", {})
    assert np.isfinite(loss_of(task, variables))
    # At equal rewards a choice of one of n costs log n.
    zero = jax.tree.map(jnp.zeros_like, variables)
    drawn = task.draw("main")(jax.random.split(jax.random.key(0), 4), task.tables("train")).episode.targets
    offered = 2 + np.asarray(drawn.listed).sum(-1)
    mask = np.asarray(drawn.mask)
    expected = np.mean((np.log(offered) * mask).sum(1) / mask.sum(1))
    assert loss_of(task, zero) == pytest.approx(expected, rel=1e-5)
    config.model = Dpl()
    assert "DPL is for choices between two" in complaint(resolve, config, dataset)


PARTS = (
    Part(weight=2.0, width=5, learning_rate=3e-3, response_penalty=0.2),
    Part(prior=DiscretePrior(7), width=4, learning_rate=1e-2, response_penalty=0.4),
)


@pytest.mark.parametrize(("members", "parts"), [(3, ()), (1, PARTS), (2, PARTS)], ids=["seeds", "kinds", "both"])
def test_the_models_of_an_ensemble_train_as_each_does_alone(tmp_path, members, parts):
    config = tiny.auto_config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()))
    dataset = tiny.load_dataset(config)
    config = resolve(config, dataset)
    config.model.members, config.model.parts = members, parts
    check(config)
    task = RewardTask(config, dataset)
    population = RewardTask(config, dataset).start("population", {})
    variables = task.start("main", {"population": population})
    singles = []
    for part in parts or (None,):
        single = copy.deepcopy(config)
        single.model.members, single.model.parts = 1, ()
        if part is not None:
            single.model.width, single.model.encoder.prior = part.width, part.prior
            single.optim.learning_rate, single.objective.response_penalty = part.learning_rate, part.response_penalty
        singles += [RewardTask(single, dataset)] * members
    each = separate(variables)
    first = singles[0].start("main", {"population": population})
    jax.tree.map(np.testing.assert_array_equal, each[0], first)  # the first one is the model without an ensemble
    kernels = [np.asarray(one["params"]["target_encoder"]["dense_0"]["kernel"]) for one in each]
    assert len({kernel.tobytes() for kernel in kernels}) == len(each)
    tables = task.tables("train")
    batch = Batch(task.draw("main")(jax.random.split(jax.random.key(0), 4), tables), tables)

    def stepped(task, params):
        optimizer = task.optimizer("main")
        state = optimizer.init(params)
        gradient = jax.grad(lambda p: task.loss("main")({"params": p}, batch, jax.random.key(1))[0])
        for _ in range(2):
            updates, state = optimizer.update(gradient(params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    with jax.numpy_dtype_promotion("standard"):
        found = separate({"params": stepped(task, variables["params"])})
        for got, single, one in zip(found, singles, each, strict=True):
            expected = stepped(single, one["params"])
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got["params"], expected)
