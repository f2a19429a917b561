"""Settings: they survive a file, and a wrong one is an error that names its key."""

import json

import pytest

from fssa_jax.config import reward as configs
from fssa_jax.config.reward import Config
from tests.mistakes import complaint


def changed(key: str, value) -> Config:
    """The default configuration with one field set, whatever its type."""
    config = Config()
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = getattr(node, group)
    assert hasattr(node, name)
    setattr(node, name, value)
    return config


def nested(key: str, value) -> dict:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def test_a_configuration_survives_its_file(tmp_path):
    config = changed("evaluate.k", (0, 2))
    config.model.encoder.inputs = ("difference",)
    config.optim.learning_rate = 3e-4
    config.data.path = "größe.jsonl"
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(config))
    assert configs.read(path) == config
    assert configs.read(path) != Config()


def test_the_defaults_are_allowed():
    assert configs.check(Config()) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speed", 1),
        ("optim.learning_rte", 1.0),
        ("model.encoder.depth", 3),
        ("seed", "0"),
        ("seed", True),
        ("train.steps", 1.5),
        ("optim.learning_rate", "fast"),
        ("optim.learning_rate", None),
        ("model.encoder.residual", 1),
        ("model.encoder", "big"),
        ("model", None),
        ("model.encoder.inputs", "chosen"),
        ("model.encoder.inputs", [1]),
        ("evaluate.k", 5),
        ("evaluate.k", [0, 1.5]),
        ("data.source", "row"),
        ("data.on_error", "ignore"),
        ("model.encoder.aggregation", "max"),
        ("model.kind", ["btl"]),
        ("train.parallel", ""),
    ],
)
def test_an_unknown_or_ill_typed_key_of_a_file_is_named_in_full(tmp_path, key, value):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(nested(key, value)))
    assert complaint(configs.read, path).startswith(f"config.{key}: ")


@pytest.mark.parametrize("content", ["{", "", "[]", "3", "null"])
def test_a_file_that_is_no_object_is_an_error(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert complaint(configs.read, path)


def test_whole_numbers_are_numbers(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"optim": {"learning_rate": 1}}))
    rate = configs.read(path).optim.learning_rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 0),
        ("train.steps", -5),
        ("train.users", 0),
        ("train.targets", 0),
        ("train.steps_per_call", 0),
        ("train.keep", 0),
        ("evaluate.draws", 0),
        ("objective.samples", 0),
        ("optim.learning_rate", 0.0),
        ("optim.learning_rate", -1e-3),
        ("model.encoder.width", 0),
        ("model.encoder.heads", 0),
        ("evaluate.k", (0, -1)),
        ("evaluate.k", ()),
        ("train.validate_every", 75),
        ("train.checkpoint_every", 10),
        ("model.encoder.inputs", ()),
        ("model.encoder.inputs", ("chosen", "text")),
        ("model.encoder.observations", ("margin",)),
        ("model.encoder.support", -1),
        ("model.encoder.rounds", 0),
        ("model.encoder.inputs", ("margin",)),
        ("model.encoder.width", 100),
        ("train.steps", "many"),
        ("data.source", "nowhere"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_in_full(key, value):
    assert complaint(configs.check, changed(key, value)).startswith(f"config.{key}: ")


def test_heads_must_divide_the_width_only_where_there_are_heads():
    config = changed("model.encoder.heads", 7)
    assert "heads (7)" in complaint(configs.check, config)
    config.model.encoder.aggregation = "mean"
    configs.check(config)
