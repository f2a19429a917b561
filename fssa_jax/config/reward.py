"""Typed settings of an experiment. Files in configs/ return a `Config`; flags override single fields."""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError


def choice(default: str, *others: str) -> Any:
    """A field whose value must be one of these words. (Flags cannot parse a Literal type.)"""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})


@dataclasses.dataclass
class DataConfig:
    """Where choices come from, and the features of their texts."""

    # synthetic: fresh draws on the device. synthetic_published: the paper's fixed 20,000 pairs.
    source: str = choice("rows", "synthetic", "synthetic_published", "styles")
    # rows: a file, a directory that prepare_data wrote, or a `datasets` directory or hub name.
    path: str = ""
    on_error: str = choice("raise", "skip")
    # Of UltraFeedback's schema: which ratings are people, and the share of pairs that they disagree about.
    labels: tuple[str, ...] = ()  # () for those that were prepared, else helpfulness and honesty
    conflicting: float = 1.0
    groups: tuple[str, ...] = ()  # rows of these groups alone; () for all
    # auto: vectors beside the rows if there are any, else a sentence encoder where one is at hand, else tfidf;
    # of styles tfidf.
    features: str = choice("auto", "given", "encoder", "tfidf")
    vectors: str = ""  # .npy, one row a text; default: beside the rows
    texts: str = ""  # .jsonl(.gz) of [prompt, response], in the order of the vectors
    components: int = 64  # of the truncated SVD behind tfidf
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"  # directory or hub name of a pretrained model
    encoder_pool: str = choice("mean", "response", "last")  # tokens of the response, last token: decoders only
    encoder_layer: int = 0  # of a decoder: blocks that are run; 0 for all of them
    encoder_tokens: int = 0  # longer texts are cut; 0 for the model's limit
    encoder_dtype: str = choice("float32", "bfloat16")  # of weights and computation; vectors are float32
    encoder_attention: str = choice("xla", "cudnn", "splash")  # of a decoder: cudnn on GPUs in bfloat16, splash on TPUs
    encoder_normalise: bool = True  # vectors of unit length
    min_context: int = 1  # users with fewer rows in a pool are left out, by name
    min_targets: int = 1
    max_rows: int = 64  # of a user's pool; more are left out by chance, and counted
    hold_out_items: bool = False  # train only on rows whose split_item is train
    split_seed: int = 0
    # synthetic and styles only:
    train_users: int = 2000
    eval_users: int = 1000


@dataclasses.dataclass
class EncoderConfig:
    """The neural-process encoder; see models/set_encoder.py and models/bayes_encoder.py."""

    width: int = 128
    latent_dim: int = 64
    pair: str = choice("mlp", "linear")
    inputs: tuple[str, ...] = ("chosen", "rejected")  # also: difference, margin
    aggregation: str = choice("attention", "mean", "sum", "bayes")
    pool: str = choice("mean", "sum")
    prior_choice: bool = True
    residual: bool = True
    heads: int = 8
    dropout: float = 0.0
    gaussian: bool = False
    observations: tuple[str, ...] = ("difference",)  # of "bayes": difference, responses, or both
    rounds: int = 1  # of "bayes" with a normal prior
    support: int = 0  # of "bayes": kinds of people that a discrete prior knows; 0: a normal prior


@dataclasses.dataclass
class ModelConfig:
    """The reward model; see models/rewards.py."""

    kind: str = choice("np_btl", "btl", "dpl")
    link: str = choice("probit", "logistic", "logistic_published")
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    target: str = choice("mlp", "none", "linear")  # none: learnt embeddings alone
    width: int = 128
    head: str = choice("concat", "bilinear")
    norm: str = choice("none", "batch")
    population: str = choice("none", "linear", "mlp")
    # An embedding a text, for new users on known texts. auto: where most held-out choices are about texts that
    # training rows judge too. Without it target "none" becomes "linear", factor_steps 0, and a choice is one
    # observation, a comparison (experiment.resolve).
    learn_texts: str = choice("no", "yes", "auto")
    text_dropout: float = 0.0  # share of the texts whose embedding a training step leaves out


@dataclasses.dataclass
class ObjectiveConfig:
    """What is minimised; see losses.py. `kl_weight` counts only with a Gaussian latent."""

    kind: str = choice("vpl", "elbo", "published", "predictive")
    kl_weight: float = 0.01
    samples: int = 1
    text_penalty: float = 0.0  # L2 of the learnt embeddings, summed over texts
    text_bias_penalty: float = 0.0  # L2 of the learnt population rewards, summed over texts


@dataclasses.dataclass
class OptimConfig:
    """AdamW with linear warm-up, cosine decay and clipping by global norm."""

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_fraction: float = 0.0  # of the learning rate, at the end of the cosine
    weight_decay: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    average_decay: float = 0.0  # of an exponential average of the parameters, used to predict; 0: none


@dataclasses.dataclass
class LoopConfig:
    """What every training loop needs."""

    steps: int = 3000
    steps_per_call: int = 50
    validate_every: int = 250
    checkpoint_every: int = 500
    keep: int = 2  # latest checkpoints
    parallel: str = choice("auto", "none", "pmap")


@dataclasses.dataclass
class TrainConfig(LoopConfig):
    """The loop of reward models. Steps are counted in batches of `users` episodes."""

    users: int = 64
    max_context: int = 10
    targets: int = 20
    population_steps: int = 1000  # population BTL: baseline, and start of `model.population`
    population_learning_rate: float = 0.0  # 0: the same as optim.learning_rate
    factor_steps: int = 0  # of the factorisation that learnt texts start from; 0: a random start
    oracle_steps: int = 1000  # specialists; 0 for none


@dataclasses.dataclass
class EvaluateConfig:
    """How held-out people are scored; see evaluate.py."""

    k: tuple[int, ...] = (0, 1, 3, 5, 10)
    draws: int = 4  # random contexts a user
    samples: int = 16  # of a Gaussian latent, whose predictions are averaged
    bootstrap: int = 1000
    shuffles: int = 4  # permutations of the shuffled-context control
    shuffle_within_group: bool = False


@dataclasses.dataclass
class Config:
    """One experiment. `name` is only a label."""

    name: str = ""
    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)


def to_json(config: Any) -> str:
    """The configuration as JSON text, every field spelt out."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_dict(kind: type, values: dict[str, Any], place: str = "config") -> Any:
    """A dataclass from a dictionary; an unknown or ill-typed key is a `UserError` that names it."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{place}.{unknown[0]}: unknown key; known are {', '.join(sorted(hints))}")
    for field in dataclasses.fields(kind):
        choices = field.metadata.get("choices")
        if choices and field.name in values and values[field.name] not in choices:
            got = values[field.name]
            raise UserError(f"{place}.{field.name}: must be one of {', '.join(choices)}; got {got!r}")
    return kind(**{name: _convert(hints[name], value, f"{place}.{name}") for name, value in values.items()})


def read(path: Path, kind: type = Config) -> Any:
    """The configuration of a kind that `to_json` wrote."""
    return _convert(kind, read_json(path), "config")


def read_json(path: Path) -> Any:
    """What is in a config.json, unchecked."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it, or train into a new workdir") from error


def check(config: Config) -> None:
    """Raises `UserError` on a value that its field does not allow, naming the key."""
    positive = {
        "train.users": config.train.users,
        "train.targets": config.train.targets,
        "train.population_steps": config.train.population_steps,
        "objective.samples": config.objective.samples,
    }
    check_fields(Config, config, positive)
    if config.train.factor_steps and config.model.kind != "np_btl":
        raise UserError("config.train.factor_steps: needs config.model.kind=np_btl; give 0")


def check_fields(kind: type, config: Any, positive: Mapping[str, float]) -> None:
    """What every kind of configuration is checked for: types, the loop, the encoder, the evaluation.

    `positive` are further values that must be above 0, by the names of their keys.
    """
    from_dict(kind, dataclasses.asdict(config))
    positive = {
        **positive,
        "train.steps": config.train.steps,
        "train.steps_per_call": config.train.steps_per_call,
        "train.validate_every": config.train.validate_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.keep": config.train.keep,
        "train.max_context": config.train.max_context,
        "evaluate.draws": config.evaluate.draws,
        "evaluate.samples": config.evaluate.samples,
        "evaluate.bootstrap": config.evaluate.bootstrap,
        "evaluate.shuffles": config.evaluate.shuffles,
        "optim.learning_rate": config.optim.learning_rate,
        "model.encoder.width": config.model.encoder.width,
        "model.encoder.latent_dim": config.model.encoder.latent_dim,
        "model.encoder.heads": config.model.encoder.heads,
        "model.encoder.rounds": config.model.encoder.rounds,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise UserError(f"config.{name}: must be positive, got {value}")
    encoder = config.model.encoder
    if encoder.support < 0:
        raise UserError(f"config.model.encoder.support: must not be negative, got {encoder.support}")
    if encoder.support and encoder.aggregation != "bayes":
        raise UserError("config.model.encoder.support: a prior is of aggregation=bayes; give 0")
    if encoder.support and encoder.rounds != 1:
        raise UserError("config.model.encoder.rounds: a discrete prior (support > 0) needs no steps; give 1")
    if not 0 <= config.optim.average_decay < 1:
        raise UserError(f"config.optim.average_decay: must be in [0, 1), got {config.optim.average_decay}")
    if not config.evaluate.k or min(config.evaluate.k) < 0:
        raise UserError(f"config.evaluate.k: needs context sizes ≥ 0, got {config.evaluate.k}")
    for name in ("validate_every", "checkpoint_every"):
        if getattr(config.train, name) % config.train.steps_per_call:
            raise UserError(
                f"config.train.{name}: must be a multiple of steps_per_call ({config.train.steps_per_call})"
            )
    model = config.model
    words = {"inputs": ("chosen", "rejected", "difference", "margin"), "observations": ("difference", "responses")}
    for name, known in words.items():
        given = getattr(model.encoder, name)
        if not given or set(given) - set(known):
            raise UserError(f"config.model.encoder.{name}: must be some of {', '.join(known)}; got {given}")
    if "margin" in model.encoder.inputs and model.population == "none":
        raise UserError("config.model.encoder.inputs: 'margin' needs config.model.population=linear or mlp")
    if model.encoder.aggregation == "bayes" and model.encoder.latent_dim != model.width:
        raise UserError(
            f"config.model.encoder.latent_dim: with aggregation 'bayes' it must be model.width ({model.width}), "
            f"got {model.encoder.latent_dim}"
        )
    if config.model.encoder.aggregation == "attention" and config.model.encoder.width % config.model.encoder.heads:
        raise UserError(
            f"config.model.encoder.width: {config.model.encoder.width} is not a multiple of "
            f"heads ({config.model.encoder.heads})"
        )


def _convert(hint: Any, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{place}: must be a group of settings, got {value!r}")
        return from_dict(typing.cast(type, hint), value, place)
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"{place}: must be a list of {item.__name__}; got {value!r}")
        return tuple(_convert(item, v, place) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{place}: must be {hint.__name__}; got {value!r}")
    return value
