"""Settings of policies and bases: what has no meaning cannot be said, and what remains is named by its key."""

import dataclasses

import pytest

from fssa_jax.config import (
    Btl,
    Dpo,
    Film,
    FrozenEncoder,
    Lora,
    NewEncoder,
    NpBtl,
    PolicyConfig,
    SetEncoder,
    SftConfig,
    SharedLora,
    WarmEncoder,
    check,
)
from fssa_jax.config.fields import from_dict
from tests import tiny_policy
from tests.mistakes import complaint
from tests.tiny_policy import change

MISTAKES = {
    "no base": ({"policy.base": ""}, "config.policy.base: give the directory or hub name of a checkpoint"),
    "frozen without a teacher": ({"encoder.init_from": ""}, "config.encoder.init_from: name the work directory"),
    "warm without a teacher": ({"encoder": WarmEncoder()}, "config.encoder.init_from: name the work directory"),
    "place": ({"policy.adapter.places": ("q_proj",)}, "config.policy.adapter.places: must be one of query"),
    "low rank on the residual": (
        {"policy.adapter": Lora(places=("residual",))},  # type: ignore[arg-type]
        "config.policy.adapter.places: must be one of query, key, value, out, gate, up, down; got 'residual'",
    ),
    "shared on the residual": (
        {"policy.adapter.shared": SharedLora(places=("residual",), rank=2)},  # type: ignore[arg-type]
        "config.policy.adapter.shared.places: must be one of query",
    ),
    "no places": ({"policy.adapter.places": ()}, "config.policy.adapter.places: needs one place or more"),
    "place twice": ({"policy.adapter.places": ("query", "query")}, "each once"),
    "shared place twice": (
        {"policy.adapter.shared": SharedLora(places=("query", "query"), rank=2)},
        "config.policy.adapter.shared.places: needs one place or more, each once",
    ),
    "parts": ({"train.accumulate": 3}, "config.train.accumulate: 4 users"),
    "smoothing": ({"objective": Dpo(label_smoothing=0.5)}, "config.objective.label_smoothing: must be ≥ 0 and < 0.5"),
    "distil": ({"encoder.distil": 2.0}, "config.encoder.distil: must be ≥ 0 and ≤ 1, got 2.0"),
    "labels of ranked pairs": (
        {"encoder.pairs": "ranked", "encoder.distil": 0.5},
        "config.encoder.pairs: nobody chose between ranked pairs",
    ),
    "samples": ({"evaluate.samples": 4}, "config.evaluate.samples: must be ≥ 1 and ≤ 1"),
    "objective": ({"objective": Film()}, "config.objective: must be one of Dpo, RobustDpo, Ipo, Hinge; got Film"),
    "no reader": ({"encoder": NewEncoder(model=Btl())}, "config.encoder.model: must be one of NpBtl; got Btl"),  # type: ignore[arg-type]
    "rank": ({"policy.adapter.shared.rank": -1}, "config.policy.adapter.shared.rank: must be ≥ 0, got -1"),
    "weight": ({"objective.sft_weight": -1.0}, "config.objective.sft_weight: must be ≥ 0"),
    "width": ({"policy.adapter": Lora(width=0)}, "config.policy.adapter.width: must be > 0"),
    "imitation of nothing": (
        {"encoder.imitate": "reward", "objective.sft_weight": 0.0},
        "whose config.objective.sft_weight is 0",
    ),
    "average": ({"optim.average_decay": 2.0}, "config.optim.average_decay: must be ≥ 0 and < 1, got 2.0"),
    "more context at least than at most": ({"train.min_context": 11}, "config.train.min_context: must be at most"),
    "no context": ({"train.max_context": -1}, "config.train.max_context: must be > 0, got -1"),
    "scale of nothing": (
        {"policy.adapter.shared.alpha": 4.0},
        "config.policy.adapter.shared.alpha: only applies with config.policy.adapter.shared.rank > 0",
    ),
    "places of nothing": (
        {"policy.adapter.shared.places": ("query",)},
        "config.policy.adapter.shared.places: only applies with config.policy.adapter.shared.rank > 0",
    ),
    "no number": ({"evaluate.generate.temperature": float("nan")}, "config.evaluate.generate.temperature: must be"),
    "length buckets": ({"train.length_buckets": 9}, "config.train.length_buckets: must be ≥ 1 and ≤ 8, got 9"),
    "divergence of a point": (
        {"encoder": NewEncoder(divergence="elbo")},
        "config.encoder.divergence: only applies to a Gaussian latent",
    ),
    "weight of a point": (
        {"encoder": WarmEncoder(init_from="reward", kl_weight=0.1)},
        "config.encoder.kl_weight: only applies to a Gaussian latent",
    ),
    "attention's dropout of a new encoder": (
        {"encoder": NewEncoder(model=NpBtl(encoder=SetEncoder(dropout=0.1)))},
        "config.encoder.model.encoder.dropout: is not used in the training of a policy",
    ),
    "dropout of a new encoder": (
        {"encoder": NewEncoder(model=NpBtl(text_dropout=0.1))},
        "config.encoder.model.text_dropout: is not used in the training of a policy",
    ),
}


@pytest.mark.parametrize(("settings", "words"), MISTAKES.values(), ids=MISTAKES)
def test_settings_that_mean_nothing_are_named(settings, words):
    config = change(tiny_policy.config("rows.jsonl", "base", "reward"), settings)
    assert words in complaint(check, config)


SFT_MISTAKES = {
    "kv heads": ({"policy.new.kv_heads": 3}, "config.policy.new.kv_heads: 4 heads"),
    "head": ({"policy.new.width": 68}, "config.policy.new.width: must be a multiple of twice the 4 heads"),
    "vocabulary": ({"policy.new.vocabulary": 100}, "config.policy.new.vocabulary: must be ≥ 261, got 100"),
    "parts": ({"train.accumulate": 3}, "config.train.accumulate: 4 texts"),
    "unread of rows": ({"train.unread": "topics"}, "config.train.unread: only applies to a base trained on styles"),
}


@pytest.mark.parametrize(("settings", "words"), SFT_MISTAKES.values(), ids=SFT_MISTAKES)
def test_settings_of_a_base_that_mean_nothing_are_named(settings, words):
    assert words in complaint(check, change(tiny_policy.sft_config("rows.jsonl"), settings))


# What belongs to another kind is no key of this one.
FOREIGN = {
    "smoothing of ipo": {"objective": {"kind": "Ipo", "label_smoothing": 0.1}},
    "labels that move": {"encoder": {"kind": "WarmEncoder", "distil": 0.5}},
    "imitation of an encoder that moves": {"encoder": {"kind": "WarmEncoder", "imitate": "advantage"}},
    "the loss of a frozen encoder": {"encoder": {"kind": "FrozenEncoder", "auxiliary_weight": 0.5}},
    "divergence of a frozen encoder": {"encoder": {"kind": "FrozenEncoder", "divergence": "elbo"}},
    "teacher of a new encoder": {"encoder": {"kind": "NewEncoder", "init_from": "reward"}},
    "divergence for everybody": {"encoder": {"kind": "NoEncoder", "divergence": "elbo"}},
    "imitation by everybody": {"encoder": {"kind": "NoEncoder", "imitate": "advantage"}},
    "teacher for everybody": {"encoder": {"kind": "NoEncoder", "init_from": "reward"}},
    "hidden of low rank": {"policy": {"adapter": {"kind": "Lora", "hidden": 4}}},
    "core of film": {"policy": {"adapter": {"kind": "Film", "core": "full"}}},
    "rank of film": {"policy": {"adapter": {"kind": "Film", "rank": 4}}},
    "width of film": {"policy": {"adapter": {"kind": "Film", "width": 32}}},
    "width of a core": {"policy": {"adapter": {"kind": "LoraCore", "width": 32}}},
    "unread by a policy": {"train": {"unread": "topics"}},
    "a new model that is steered": {"policy": {"new": 64}},
}

FOREIGN_OF_TEXTS = {
    "labels": {"encoder": {"kind": "FrozenEncoder", "init_from": "reward"}},
    "objective": {"objective": {"kind": "Dpo", "length_normalised": True}},
    "adapter": {"policy": {"adapter": {"kind": "Lora"}}},
    "users": {"train": {"users": 4}},
}


def last_key(values: dict, place: str = "config") -> str:
    """The key of the last of the values, written out."""
    name, value = list(values.items())[-1]
    return last_key(value, f"{place}.{name}") if isinstance(value, dict) else f"{place}.{name}"


@pytest.mark.parametrize("values", FOREIGN.values(), ids=FOREIGN)
def test_settings_of_another_kind_are_unknown(values):
    assert complaint(from_dict, PolicyConfig, values).startswith(f"{last_key(values)}: unknown key; known are")


@pytest.mark.parametrize("values", FOREIGN_OF_TEXTS.values(), ids=FOREIGN_OF_TEXTS)
def test_a_base_is_made_of_texts_alone(values):
    place = complaint(from_dict, SftConfig, values).partition(": unknown key; known are")[0]
    assert last_key(values).startswith(place)
    assert place.count(".") == 1 + ("policy" in values or "train" in values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"objective": {"kind": "Kto"}}, "config.objective.kind: must be one of Dpo, RobustDpo, Ipo, Hinge; got 'Kto'"),
        ({"objective": {"beta": 1.0}}, "config.objective.kind: must be one of Dpo, RobustDpo, Ipo, Hinge; got None"),
        (
            {"encoder": {"kind": "NewEncoder", "model": {"kind": "Btl"}}},
            "config.encoder.model.kind: unknown key; known are",
        ),
        ({"policy": {"adapter": "Film"}}, "config.policy.adapter: must be a group of settings, got 'Film'"),
    ],
)
def test_a_kind_that_does_not_exist_is_named(values, words):
    assert complaint(from_dict, PolicyConfig, values).startswith(words)


def test_what_counts_is_allowed():
    """Next to each setting that is refused, the one that makes it count."""
    config = tiny_policy.config("rows.jsonl", "base", "reward")
    gaussian = NpBtl(encoder=SetEncoder(gaussian=True))
    for settings in (
        {"encoder": FrozenEncoder(init_from="reward", imitate="reward", model=NpBtl(text_dropout=0.1))},
        {"encoder": NewEncoder(model=gaussian, divergence="elbo", kl_weight=0.1)},
        {"policy.adapter.shared": SharedLora(places=("query",), rank=2, alpha=4.0)},
    ):
        assert check(change(dataclasses.replace(config), settings)) is None
    assert check(tiny_policy.sft_config("rows.jsonl")) is None
