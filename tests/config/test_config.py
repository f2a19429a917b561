"""Settings: they survive a file, and a wrong one is an error that names its key."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from configs import rows
from fssa_jax import config as configs
from fssa_jax.config import (
    BayesEncoder,
    Btl,
    DiscretePrior,
    FrozenEncoder,
    Lora,
    NewEncoder,
    NoEncoder,
    Part,
    PolicyConfig,
    RewardConfig,
    Rows,
    SetEncoder,
    SftConfig,
    SharedLora,
    Styles,
    WarmEncoder,
)
from fssa_jax.config.experiment import read
from fssa_jax.config.fields import all_kinds, fields_of, kinds_of
from fssa_jax.files import with_checksum
from tests.mistakes import complaint


def changed(key: str, value: Any, config: Any = None) -> Any:
    """A configuration with one field set, whatever its type; the default one of a reward model if none is given."""
    config = RewardConfig() if config is None else config
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = getattr(node, group)
    assert hasattr(node, name)
    setattr(node, name, value)
    return config


def nested(key: str, value: Any, kinds: dict[str, str]) -> dict:
    """A dictionary of dictionaries in which a dotted key has the value; `kinds` are those of the groups on its way."""
    *groups, name = key.split(".")
    out = {name: value}
    for i in range(len(groups), 0, -1):
        kind = kinds.get(".".join(groups[:i]))
        out = {groups[i - 1]: ({"kind": kind} if kind else {}) | out}
    return out


def write(path, values: dict, kind: str = "RewardConfig"):
    path.write_text(json.dumps(with_checksum({"kind": kind} | values)))
    return path


def test_a_configuration_survives_its_file(tmp_path):
    config = changed("evaluate.k", (0, 2))
    config.model.encoder.inputs = ("difference",)
    config.optim.learning_rate = 3e-4
    config.data.path = "größe.jsonl"
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(config))
    assert read(path) == config
    assert read(path) != RewardConfig()


def variants(kind: type) -> Iterator[Any]:
    """The defaults of a configuration, and with each kind of each group in turn, also of groups inside groups."""
    yield kind()
    for field, hint in fields_of(kind):
        for option in kinds_of(hint):
            for value in variants(option):
                yield dataclasses.replace(kind(), **{field.name: value})


@pytest.mark.parametrize(("kind", "number"), [(RewardConfig, 9), (PolicyConfig, 19), (SftConfig, 5)])
def test_every_kind_of_every_group_survives_its_file(tmp_path, kind, number):
    path = tmp_path / "config.json"
    made = list(variants(kind))
    for config in made:
        path.write_text(configs.to_json(config))
        assert read(path) == config
        assert type(read(path)) is kind
    assert len({configs.to_json(config) for config in made}) == number


def test_models_that_are_averaged_survive_their_file_and_are_checked(tmp_path):
    config = rows.get_config("np_btl")
    config.model.parts = (Part(weight=2.0, prior=DiscretePrior(7)), Part(observations=("responses",)))
    configs.check(config)
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(config))
    assert read(path) == config
    one = copy.deepcopy(config)
    one.model.parts = one.model.parts[:1]
    assert "one model is no average" in complaint(configs.check, one)
    config.model.population, config.auto = "mlp", "no"
    assert "share no population=mlp" in complaint(configs.check, config)
    config = rows.get_config("np_btl")
    for part, key in [
        (Part(weight=0.0), "parts[1].weight: "),
        (Part(width=2.5), "parts[1].width: "),
        (Part(observations=()), "parts[1].observations: "),
        (Part(prior="normal"), "parts[1].prior: "),
        ("features", "parts[1]: "),
    ]:
        config.model.parts = (Part(), part)
        assert complaint(configs.check, config).startswith(f"config.model.{key}")


@pytest.mark.parametrize(("name", "value"), [("members", 2), ("parts", (Part(), Part()))])
def test_a_policy_trains_no_models_that_are_averaged(name, value):
    config = changed("policy.base", "base", PolicyConfig())
    config.encoder.model = rows.get_config("np_btl").model
    configs.check(config)
    setattr(config.encoder.model, name, value)
    assert complaint(configs.check, config).startswith(f"config.encoder.model.{name}: ")


def test_the_defaults_are_allowed():
    assert configs.check(RewardConfig()) is None
    assert configs.check(SftConfig()) is None
    assert "config.policy.base: give" in complaint(configs.check, PolicyConfig())
    assert configs.check(changed("policy.base", "base", PolicyConfig())) is None


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
        ("data.features", "tf-idf"),
        ("data.on_error", "ignore"),
        ("model.encoder.aggregation", "max"),
        ("model.kind", ["btl"]),
        ("model.kind", "SetEncoder"),
        ("model.encoder.kind", "NpBtl"),
        ("data.kind", "rows"),
        ("data.kind", None),
        ("train.parallel", ""),
    ],
)
def test_an_unknown_or_ill_typed_key_of_a_file_is_named_in_full(tmp_path, key, value):
    kinds = {"model": "NpBtl", "model.encoder": "SetEncoder", "data": "Rows"}
    path = write(tmp_path / "config.json", nested(key, value, kinds))
    assert complaint(read, path).startswith(f"config.{key}: ")


@pytest.mark.parametrize(
    ("config", "key", "kinds"),
    [
        ("RewardConfig", "model.encoder", {"model": "Btl"}),
        ("RewardConfig", "model.link", {"model": "Btl"}),
        ("RewardConfig", "model.encoder.heads", {"model": "NpBtl", "model.encoder": "BayesEncoder"}),
        ("RewardConfig", "model.encoder.observations", {"model": "NpBtl", "model.encoder": "SetEncoder"}),
        ("RewardConfig", "data.hold_out_items", {"data": "Styles"}),
        ("RewardConfig", "data.labels", {"data": "Rows"}),
        ("RewardConfig", "data.features", {"data": "Synthetic"}),
        ("RewardConfig", "policy", {}),
        ("PolicyConfig", "model", {}),
        ("PolicyConfig", "encoder.distil", {"encoder": "WarmEncoder"}),
        ("PolicyConfig", "encoder.auxiliary_weight", {"encoder": "FrozenEncoder"}),
        ("PolicyConfig", "encoder.init_from", {"encoder": "NoEncoder"}),
        ("PolicyConfig", "policy.adapter.core", {"policy.adapter": "Film"}),
        ("PolicyConfig", "policy.adapter.hidden", {"policy.adapter": "Lora"}),
        ("PolicyConfig", "policy.new", {}),
        ("PolicyConfig", "objective.label_smoothing", {"objective": "Ipo"}),
        ("PolicyConfig", "train.texts", {}),
        ("SftConfig", "objective", {}),
        ("SftConfig", "policy.adapter", {}),
    ],
)
def test_a_key_of_another_kind_is_unknown(tmp_path, config, key, kinds):
    """What has no meaning for a kind cannot be said of it."""
    path = write(tmp_path / "config.json", nested(key, 1, kinds), config)
    assert complaint(read, path).startswith(f"config.{key}: unknown key; known are ")


@pytest.mark.parametrize("content", ["{", "", "[]", "3", "null"])
def test_a_file_that_is_no_object_is_an_error(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert complaint(read, path)


@pytest.mark.parametrize("kind", ["Config", "NpBtl", "", None, 3, ["RewardConfig"]])
def test_a_file_of_another_version_asks_to_train_again(tmp_path, kind):
    path = write(tmp_path / "config.json", {"kind": kind})
    assert "another version of fssa_jax; train again" in complaint(read, path)


def test_whole_numbers_are_numbers(tmp_path):
    rate = read(write(tmp_path / "config.json", {"optim": {"learning_rate": 1}})).optim.learning_rate
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
        ("optim.learning_rate", float("nan")),
        ("optim.learning_rate", float("inf")),
        ("model.encoder.width", 0),
        ("model.encoder.heads", 0),
        ("evaluate.k", (0, -1)),
        ("evaluate.k", ()),
        ("train.validate_every", 75),
        ("train.checkpoint_every", 10),
        ("train.accumulate", 3),
        ("model.encoder.inputs", ()),
        ("model.encoder.inputs", ("chosen", "text")),
        ("model.encoder.inputs", ("margin",)),
        ("model.encoder.width", 100),
        ("model.encoder.dropout", 1.0),
        ("model.members", 0),
        ("model.members", 2),
        ("model.parts", (Part(),)),
        ("model.parts", "features"),
        ("train.steps", "many"),
        ("data.features", "nowhere"),
        ("data.split_seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_value_that_is_not_allowed_is_named_in_full(key, value):
    assert complaint(configs.check, changed(key, value)).startswith(f"config.{key}: ")


@pytest.mark.parametrize(
    ("key", "value"), [("observations", ("margin",)), ("observations", ()), ("prior.rounds", 0), ("prior.kinds", -1)]
)
def test_a_value_that_is_not_allowed_for_the_bayes_encoder_is_named_in_full(key, value):
    encoder = BayesEncoder()
    if key == "prior.kinds":
        encoder.prior = configs.DiscretePrior()
    config = changed("model.encoder", encoder)
    assert configs.check(config) is None
    assert complaint(configs.check, changed(f"model.encoder.{key}", value, config)).startswith(
        f"config.model.encoder.{key}: "
    )


def policy(**groups: Any) -> PolicyConfig:
    config = PolicyConfig(**groups)
    config.policy.base = "base"
    return config


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (policy(), "objective.beta", 0.0),
        (policy(), "objective.label_smoothing", 0.5),
        (policy(), "policy.adapter.places", ()),
        (policy(), "policy.adapter.places", ("query", "query")),
        (policy(), "policy.adapter.places", ("query", "nowhere")),
        (policy(), "policy.adapter.shared.places", ()),
        (policy(), "policy.adapter.shared.places", ("residual",)),
        (policy(), "policy.adapter.shared.rank", -1),
        (policy(), "encoder.model.encoder.inputs", ("margin",)),
        (policy(), "encoder.divergence", "predictive"),
        (policy(encoder=FrozenEncoder()), "encoder.init_from", ""),
        (policy(encoder=FrozenEncoder(init_from="reward")), "encoder.distil", 1.5),
        (policy(encoder=FrozenEncoder(init_from="reward")), "encoder.imitate", "rejected"),
        (policy(encoder=WarmEncoder()), "encoder.init_from", ""),
        (policy(), "evaluate.samples", 2),
        (policy(), "evaluate.generate.top_p", 0.0),
        (policy(), "evaluate.generate.people", -1),
        (policy(), "train.length_buckets", 9),
        (policy(), "train.accumulate", 3),
        (SftConfig(), "train.unread", "topics"),
        (SftConfig(), "train.unread", "everything"),
        (SftConfig(), "policy.new.kv_heads", 3),
        (SftConfig(), "policy.new.width", 60),
        (SftConfig(), "policy.new.vocabulary", 260),
        (SftConfig(), "policy.dtype", "float16"),
        (SftConfig(), "train.accumulate", 5),
    ],
)
def test_a_value_that_is_not_allowed_for_a_language_model_is_named_in_full(config, key, value):
    assert complaint(configs.check, changed(key, value, copy.deepcopy(config))).startswith(f"config.{key}: ")


def test_what_needs_something_else_is_allowed_with_it():
    config = SftConfig(data=Styles())
    config.train.unread = "topics"
    assert configs.check(config) is None
    config = RewardConfig(model=Btl())
    assert configs.check(config) is None
    config.train.factor_steps = 10
    assert complaint(configs.check, config).startswith("config.train.factor_steps: needs a model whose texts have")
    margin = changed("model.encoder.inputs", ("margin",))
    margin.model.population = "linear"
    assert configs.check(margin) is None
    assert configs.check(policy(encoder=NoEncoder())) is None
    assert configs.check(policy(encoder=NewEncoder())) is None


def test_heads_must_divide_the_width_only_where_there_are_heads():
    config = changed("model.encoder.heads", 7)
    assert "heads (7)" in complaint(configs.check, config)
    config.model.encoder.aggregation = "mean"
    configs.check(config)


def test_kinds_are_listed_once_and_wherever_they_are():
    kinds = all_kinds(RewardConfig, PolicyConfig, SftConfig)
    assert len(kinds) == len(set(kinds))
    assert {Rows, Lora, SharedLora, SetEncoder, BayesEncoder, NoEncoder} <= set(kinds)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**63),
        ("data.split_seed", -1),
        ("data.components", 0),
        ("data.max_rows", 2**70),
        ("model.width", 0),
        ("evaluate.k", (10**9,)),
        ("evaluate.k", ()),
        ("optim.learning_rate", 2**70),
        ("optim.clip_norm", float("inf")),
        ("train.users", -3),
    ],
)
def test_values_that_nothing_can_have_are_refused_by_their_key(key, value):
    assert f"config.{key}" in complaint(configs.check, changed(key, value))
