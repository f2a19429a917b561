"""An experiment: one class per task. Files in configs/ return one; flags override single fields."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from fssa_jax.config.data import Data, Rows, Styles
from fssa_jax.config.evaluate import Evaluation, PolicyEvaluation
from fssa_jax.config.fields import check_fields, from_dict, group, number, read_json
from fssa_jax.config.model import BayesEncoder, NpBtl, RewardModel
from fssa_jax.config.objective import AdamW, Dpo, NeuralProcess, PreferenceLoss
from fssa_jax.config.policy import (
    FrozenEncoder,
    NewEncoder,
    NoEncoder,
    PolicyEncoder,
    SharedLora,
    SteeredModel,
    TrainedModel,
    TunedLora,
    WarmEncoder,
)
from fssa_jax.config.train import PolicyTraining, RewardTraining, SftTraining
from fssa_jax.errors import UserError

_MOST_CHOICES = 10_000


@dataclasses.dataclass
class RewardConfig:
    """A reward model."""

    name: str = ""
    """A label."""
    seed: int = number(0, least=0, below=2**32)
    """Seed of parameters and batches."""
    auto: Literal["no", "yes"] = "no"
    """`yes`: how texts and people are represented is decided by short fits, on validation people; see
    experiment/choose.py."""
    data: Data = group(Rows)
    """Where choices come from."""
    model: RewardModel = group(NpBtl)
    """The reward model, and the encoder that reads choices."""
    objective: NeuralProcess = group(NeuralProcess)
    """The loss."""
    optim: AdamW = group(AdamW)
    """The optimiser."""
    train: RewardTraining = group(RewardTraining)
    """Batches, steps and checkpoints."""
    evaluate: Evaluation = group(Evaluation)
    """How held-out people are scored."""


@dataclasses.dataclass
class PolicyConfig:
    """A policy: a language model that follows a person's choices."""

    name: str = ""
    """A label."""
    seed: int = number(0, least=0, below=2**32)
    """Seed of parameters and batches."""
    data: Data = group(Rows)
    """Where choices come from."""
    encoder: PolicyEncoder = group(NewEncoder)
    """The encoder that reads choices."""
    policy: SteeredModel = group(SteeredModel)
    """The language model, and the adapter that steers it."""
    objective: PreferenceLoss = group(Dpo)
    """The loss; h = log π/π_ref of the chosen response − log π/π_ref of the rejected one."""
    optim: AdamW = group(AdamW)
    """The optimiser."""
    train: PolicyTraining = group(PolicyTraining)
    """Batches, steps and checkpoints."""
    evaluate: PolicyEvaluation = group(PolicyEvaluation)
    """How held-out people are scored, and the responses generated for them."""


@dataclasses.dataclass
class SftConfig:
    """Supervised fine-tuning of a language model, pretrained or new."""

    name: str = ""
    """A label."""
    seed: int = number(0, least=0, below=2**32)
    """Seed of parameters and batches."""
    data: Data = group(Rows)
    """Where choices come from."""
    policy: TrainedModel = group(TrainedModel)
    """The language model."""
    optim: AdamW = group(AdamW)
    """The optimiser."""
    train: SftTraining = group(SftTraining)
    """Batches, steps and checkpoints."""


Config = RewardConfig | PolicyConfig | SftConfig
KINDS = (RewardConfig, PolicyConfig, SftConfig)


def read(path: Path) -> Config:
    """The configuration that `to_json` wrote.

    Raises:
      UserError: it is damaged, or was written by another version.
    """
    values = read_json(path, sealed=True)
    name = values.pop("kind", None)
    kind = next((kind for kind in KINDS if kind.__name__ == name), None)
    if kind is None:
        raise UserError(f"{path}: written by another version of fssa_jax; train again, into a new work directory")
    return from_dict(kind, values)


def check(config: Config) -> None:
    """Raises `UserError` for values that are not allowed, or that do not fit together; the message names the key."""
    check_fields(config)
    for name in ("validate_every", "checkpoint_every"):
        if getattr(config.train, name) % config.train.steps_per_call:
            raise UserError(
                f"config.train.{name}: must be a multiple of steps_per_call ({config.train.steps_per_call})"
            )
    name, size = ("texts", config.train.texts) if isinstance(config, SftConfig) else ("users", config.train.users)
    if size % config.train.accumulate:
        raise UserError(
            f"config.train.accumulate: {size} {name} of a batch cannot be cut into "
            f"{config.train.accumulate} equal parts"
        )
    if isinstance(config, RewardConfig):
        _check_reward(config)
    elif isinstance(config, PolicyConfig):
        _check_policy(config)
    else:
        _check_sft(config)


def _check_reward(config: RewardConfig) -> None:
    _check_k(config.evaluate)
    if config.auto == "yes" and not _can_be_chosen(config):
        raise UserError(
            "config.auto: chooses among models with a BayesEncoder, head=bilinear, population=linear and "
            "keep_population, on rows; give config.auto=no"
        )
    if isinstance(config.model, NpBtl):
        _check_model(config.model, "config.model")
    elif config.train.factor_steps:
        raise UserError("config.train.factor_steps: needs a model whose texts have embeddings (NpBtl); give 0")


def _can_be_chosen(config: RewardConfig) -> bool:
    model = config.model
    if not (isinstance(model, NpBtl) and isinstance(config.data, Rows)):
        return False
    return model.population == "linear" and _can_be_averaged(model)


def _can_be_averaged(model: NpBtl) -> bool:
    return model.head == "bilinear" and model.keep_population and isinstance(model.encoder, BayesEncoder)


def _check_k(settings: Evaluation) -> None:
    if not settings.k or min(settings.k) < 0 or max(settings.k) > _MOST_CHOICES:
        raise UserError(f"config.evaluate.k: needs context sizes from 0 to {_MOST_CHOICES}, got {settings.k}")


def _check_model(settings: NpBtl, place: str) -> None:
    encoder = settings.encoder
    if not _can_be_averaged(settings):
        what = "averages models with a BayesEncoder, head=bilinear, keep_population"
        if settings.members > 1:
            raise UserError(f"{place}.members: {what}; give 1")
        if settings.parts:
            raise UserError(f"{place}.parts: {what}; leave it out")
    if len(settings.parts) == 1:
        raise UserError(f"{place}.parts: one model is no average; give its settings in {place}, or two parts or more")
    if settings.parts and settings.population == "mlp":
        raise UserError(f"{place}.parts: models of different widths share no population=mlp; give population=linear")
    for i, part in enumerate(settings.parts):
        if not part.observations:
            raise UserError(f"{place}.parts[{i}].observations: must be some of difference, responses; got none")
    if isinstance(encoder, BayesEncoder):
        if not encoder.observations:
            raise UserError(f"{place}.encoder.observations: must be some of difference, responses; got none")
        return
    if not encoder.inputs:
        raise UserError(f"{place}.encoder.inputs: must be some of chosen, rejected, difference, margin; got none")
    if "margin" in encoder.inputs and settings.population == "none":
        raise UserError(f"{place}.encoder.inputs: 'margin' needs {place}.population=linear or mlp")
    if encoder.aggregation == "attention" and encoder.width % encoder.heads:
        raise UserError(f"{place}.encoder.width: {encoder.width} is not a multiple of heads ({encoder.heads})")


def _check_policy(config: PolicyConfig) -> None:
    _check_k(config.evaluate)
    if any(n < 1 for n in config.evaluate.generate.best_of):
        raise UserError(f"config.evaluate.generate.best_of: must be ≥ 1 each, got {config.evaluate.generate.best_of}")
    if not config.policy.base:
        raise UserError(
            "config.policy.base: give the directory or hub name of a checkpoint, such as the model of an sft run"
        )
    if config.train.min_context > config.train.max_context:
        raise UserError(f"config.train.min_context: must be at most max_context ({config.train.max_context})")
    adapter, encoder = config.policy.adapter, config.encoder
    for name, places in (("places", adapter.places), ("shared.places", adapter.shared.places)):
        if not places or len(set(places)) < len(places):
            raise UserError(f"config.policy.adapter.{name}: needs one place or more, each once; got {places}")
    if not adapter.shared.rank and (unused := _given(adapter.shared, SharedLora())):
        place = "config.policy.adapter.shared"
        raise UserError(f"{place}.{unused}: only applies with {place}.rank > 0; leave it out")
    if isinstance(encoder, NewEncoder):
        _check_model(encoder.model, "config.encoder.model")
        _check_no_dropout(encoder.model)
        for name, several in {"members": encoder.model.members > 1, "parts": bool(encoder.model.parts)}.items():
            if several:
                raise UserError(
                    f"config.encoder.model.{name}: models that are averaged are trained without the policy; train "
                    "np_btl with it and name its work directory in config.encoder.init_from"
                )
    elif not isinstance(encoder, NoEncoder) and not encoder.init_from:
        raise UserError("config.encoder.init_from: name the work directory of a trained np_btl model")
    if isinstance(encoder, FrozenEncoder) and encoder.imitate != "chosen" and not config.objective.sft_weight:
        raise UserError(
            "config.encoder.imitate: weights the responses of a term whose config.objective.sft_weight is 0; give "
            "config.encoder.imitate=chosen"
        )
    if isinstance(encoder, FrozenEncoder) and encoder.pairs == "ranked" and encoder.distil < 1:
        raise UserError(
            "config.encoder.pairs: nobody chose between ranked pairs, so their labels are the reward model's; give "
            "config.encoder.distil=1"
        )
    if isinstance(encoder, WarmEncoder | NewEncoder) and not encoder.model.encoder.gaussian:
        plain = dataclasses.replace(encoder, divergence="vpl", kl_weight=0.0)
        if unused := _given(encoder, plain):
            raise UserError(f"config.encoder.{unused}: only applies to a Gaussian latent; leave it out")


def _check_no_dropout(model: NpBtl) -> None:
    """Raises `UserError` for dropout, which the training of a policy does not apply."""
    for name, share in {
        "encoder.dropout": getattr(model.encoder, "dropout", 0.0),
        "text_dropout": model.text_dropout,
    }.items():
        if share:
            raise UserError(
                f"config.encoder.model.{name}: is not used in the training of a policy; leave it out, or train np_btl "
                "with it and name its work directory in config.encoder.init_from"
            )


def _given(settings: Any, default: Any) -> str | None:
    """The first field whose value is not the default."""
    names = (field.name for field in dataclasses.fields(settings))
    return next((name for name in names if getattr(settings, name) != getattr(default, name)), None)


def _check_sft(config: SftConfig) -> None:
    new, lora = config.policy.new, config.policy.lora
    if not lora.rank and (unused := _given(lora, TunedLora())):
        raise UserError(f"config.policy.lora.{unused}: only applies with config.policy.lora.rank > 0; leave it out")
    if not lora.rank and config.policy.cache_states != "auto":
        raise UserError(
            "config.policy.cache_states: all weights are trained; give config.policy.lora.rank, or leave it out"
        )
    if lora.rank and not config.policy.base:
        raise UserError("config.policy.lora.rank: a new model has nothing to adapt; give config.policy.base, or rank 0")
    if not lora.places or len(set(lora.places)) < len(lora.places):
        raise UserError(f"config.policy.lora.places: needs one place or more, each once; got {lora.places}")
    if new.heads % new.kv_heads:
        raise UserError(f"config.policy.new.kv_heads: {new.heads} heads cannot share {new.kv_heads} evenly")
    if new.width % (2 * new.heads):
        raise UserError(f"config.policy.new.width: must be a multiple of twice the {new.heads} heads, got {new.width}")
    if config.train.unread != "nothing" and not isinstance(config.data, Styles):
        raise UserError("config.train.unread: only applies to a base trained on styles; leave it out")
