"""Random configurations: every value is refused in one line, or builds a model whose step can be traced."""

import dataclasses
import math
import typing

import jax
import numpy as np
import pytest

from configs import rows, styles, synthetic
from fssa_jax.config import NpBtl, RewardConfig, check
from fssa_jax.config.fields import fields_of, kinds_of
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import resolve
from fssa_jax.train.step import Batch
from tests import tiny
from tests.mistakes import outcome

pytestmark = pytest.mark.fuzz

NUMBERS = [0, 1, 2, 3, 7, 8, 64, -1, 2**31, 2**63, 2**70, 10**9, 0.0, 0.5, 1.0, -0.5, 1e-30, 1e30, math.nan, math.inf]
WORDS = [
    "",
    " ",
    "yes",
    "²",
    "none",
    "\x1b",
    "mean",
    None,
    [],
    (),
    (1,),
    (0, 1, 3),
    (10**9,),
    ("difference",),
    {},
    True,
]


def values_of(hint, default):
    """Values for a field: odd ones, and allowed ones."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return [*typing.get_args(hint), *typing.get_args(hint), "²", 3, None]
    if hint is bool:
        return [True, False, 1, "no"]
    if hint in (int, float):
        return [*NUMBERS, "3", None, default, default]
    return [*WORDS, default, default]


def change(rng, config):
    """Sets one field of a configuration, or of a group inside, to some value or another kind."""
    while True:
        fields = list(fields_of(type(config)))
        field, hint = fields[rng.integers(len(fields))]
        kinds = kinds_of(hint)
        if not kinds:
            values = values_of(hint, getattr(config, field.name))
            setattr(config, field.name, values[rng.integers(len(values))])
            return
        if len(kinds) > 1 and rng.random() < 0.2:
            setattr(config, field.name, kinds[rng.integers(len(kinds))]())
            return
        config = getattr(config, field.name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tiny.rows())
    return tiny.load_dataset(tiny.config(path))


def traced(config, dataset):
    """Traces the init and a step of the main model, without computing anything."""
    task = RewardTask(resolve(config, dataset, quiet=True), dataset)
    task.optimizer("main")
    tables, key = task.tables("train"), jax.random.key(0)
    rows = jax.eval_shape(task.draw("main"), jax.random.split(key, 2), tables)
    variables = jax.eval_shape(lambda k, r: task.model("main").init(k, r.episode, tables.features), key, rows)
    loss = task.loss("main")
    jax.eval_shape(lambda v, r: loss(v, Batch(r, tables), key), variables, rows)


@pytest.mark.parametrize("block", range(5))
def test_500_configurations(dataset, block):
    found = {"traced": 0, "checked": 0, "refused": 0}
    makers = [
        lambda: rows.get_config("np_btl"),
        lambda: rows.get_config("np_btl_attention"),
        lambda: styles.get_config("np_dpo_lora"),
        lambda: styles.get_config("sft"),
        lambda: synthetic.get_config("np_btl"),
        lambda: tiny.config("rows.jsonl"),
    ]
    for seed in range(100):
        rng = np.random.default_rng(100 * block + seed)
        config = makers[rng.integers(len(makers))]()
        for _ in range(rng.integers(1, 4)):
            change(rng, config)
        _, message = outcome(lambda config=config: check(config))
        if message:
            assert "config" in message
            found["refused"] += 1
            continue
        if not isinstance(config, RewardConfig) or not dataclasses.is_dataclass(config.model):
            found["checked"] += 1
            continue
        sizes = [config.train.users, getattr(config.model, "width", 1)]
        if isinstance(config.model, NpBtl) and max(sizes) < 10_000 and seed % 2 == 0:
            found["refused" if outcome(lambda config=config: traced(config, dataset))[1] else "traced"] += 1
        else:
            found["checked"] += 1
    assert found["refused"] > 20
    assert found["traced"] > 2
