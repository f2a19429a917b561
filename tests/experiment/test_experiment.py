"""What a configuration makes of a data set: learnt texts where people judge the same texts, features elsewhere."""

import jax
import numpy as np
import pytest

from configs import rows, synthetic
from fssa_jax.config.reward import check
from fssa_jax.data import build
from fssa_jax.tasks.reward import make_draw, make_model, resolve, training_data
from tests import tiny


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
    dataset = build.load_dataset(config)
    resolved = resolve(config, dataset)
    check(resolved)
    assert config.model.learn_texts == "auto"
    assert resolved.model.learn_texts == learnt
    assert resolve(resolved, dataset) == resolved
    model = make_model(resolved, dataset)
    assert model.learnt_texts == (len(dataset.texts) if learnt == "yes" else 0)
    assert model.target == ("none" if learnt == "yes" else "linear")
    assert bool(resolved.train.factor_steps) == (learnt == "yes")


def test_contexts_and_targets_are_cut_to_what_there_is(tmp_path):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()), max_context=50, targets=60)
    resolved = resolve(config, build.load_dataset(config))
    assert (resolved.train.max_context, resolved.train.targets) == (7, 7)
    assert (config.train.max_context, config.train.targets) == (50, 60)


def test_the_three_roles_are_the_models_that_are_compared(tmp_path):
    config, dataset, _ = tiny.dataset(tmp_path)
    main, population, oracle = (make_model(config, dataset, role) for role in ("main", "population", "oracle"))
    assert (main.latent, population.latent, oracle.latent) == ("context", "none", "group")
    assert oracle.groups == 2
    assert main.width == oracle.width == config.model.width


def test_the_published_split_is_trained_on_its_own_training_pairs():
    config = synthetic.get_config("np_btl")
    config.data.source = "synthetic_published"
    dataset = build.load_dataset(config)
    data = training_data(config, dataset)
    assert 15_900 < len(data.choices) < 16_100
    episode = make_draw(config)(jax.random.key(0), data)
    values = np.unique(np.asarray(data.choices))
    assert np.isin(np.asarray(episode.targets.chosen), values).all()
    held_out = dataset.features[np.asarray(dataset.splits["test"].table.chosen)[:, 1]]
    assert np.isin(held_out, values).mean() < 0.01  # float32 numbers meet by chance
