"""An experiment: one class per task. Files in configs/ return one; flags override single fields."""

import dataclasses
from pathlib import Path

from fssa_jax.config.data import Data, Rows, Styles
from fssa_jax.config.evaluate import Evaluation, PolicyEvaluation
from fssa_jax.config.fields import check_fields, from_dict, group, number, read_json
from fssa_jax.config.model import BayesEncoder, NpBtl, RewardModel
from fssa_jax.config.objective import AdamW, Dpo, NeuralProcess, PreferenceLoss
from fssa_jax.config.policy import NewEncoder, NoEncoder, PolicyEncoder, SteeredModel, TrainedModel
from fssa_jax.config.train import PolicyTraining, RewardTraining, SftTraining
from fssa_jax.errors import UserError


@dataclasses.dataclass
class RewardConfig:
    """A reward model."""

    name: str = ""
    """A label."""
    seed: int = number(0, least=0, below=2**32)
    """Seed of parameters and batches."""
    data: Data = group(Rows)
    model: RewardModel = group(NpBtl)
    objective: NeuralProcess = group(NeuralProcess)
    optim: AdamW = group(AdamW)
    train: RewardTraining = group(RewardTraining)
    evaluate: Evaluation = group(Evaluation)


@dataclasses.dataclass
class PolicyConfig:
    """A policy: a language model that follows a person's choices."""

    name: str = ""
    """A label."""
    seed: int = number(0, least=0, below=2**32)
    """Seed of parameters and batches."""
    data: Data = group(Rows)
    encoder: PolicyEncoder = group(NewEncoder)
    policy: SteeredModel = group(SteeredModel)
    objective: PreferenceLoss = group(Dpo)
    optim: AdamW = group(AdamW)
    train: PolicyTraining = group(PolicyTraining)
    evaluate: PolicyEvaluation = group(PolicyEvaluation)


@dataclasses.dataclass
class SftConfig:
    """Supervised fine-tuning of a language model, pretrained or new."""

    name: str = ""
    """A label."""
    seed: int = number(0, least=0, below=2**32)
    """Seed of parameters and batches."""
    data: Data = group(Rows)
    policy: TrainedModel = group(TrainedModel)
    optim: AdamW = group(AdamW)
    train: SftTraining = group(SftTraining)


Config = RewardConfig | PolicyConfig | SftConfig
KINDS = (RewardConfig, PolicyConfig, SftConfig)


def read(path: Path) -> Config:
    """The configuration that `to_json` wrote.

    Raises:
      UserError: it is damaged, or was written by another version.
    """
    values = read_json(path)
    kinds = {kind.__name__: kind for kind in KINDS}
    kind = kinds.get(values.pop("kind", None))
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
    if isinstance(config.model, NpBtl):
        _check_model(config.model, "config.model")
    elif config.train.factor_steps:
        raise UserError("config.train.factor_steps: needs a model whose texts have embeddings (NpBtl); give 0")


def _check_k(settings: Evaluation) -> None:
    if not settings.k or min(settings.k) < 0:
        raise UserError(f"config.evaluate.k: needs context sizes ≥ 0, got {settings.k}")


def _check_model(settings: NpBtl, place: str) -> None:
    encoder = settings.encoder
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
    if not config.policy.base:
        raise UserError(
            "config.policy.base: give the directory or hub name of a checkpoint, such as the model of an sft run"
        )
    adapter, encoder = config.policy.adapter, config.encoder
    for name, places in (("places", adapter.places), ("shared.places", adapter.shared.places)):
        if not places or len(set(places)) < len(places):
            raise UserError(f"config.policy.adapter.{name}: needs one or more places, without duplicates; got {places}")
    if isinstance(encoder, NewEncoder):
        _check_model(encoder.model, "config.encoder.model")
    elif not isinstance(encoder, NoEncoder) and not encoder.init_from:
        raise UserError("config.encoder.init_from: name the work directory of a trained np_btl model")


def _check_sft(config: SftConfig) -> None:
    new = config.policy.new
    if new.heads % new.kv_heads:
        raise UserError(f"config.policy.new.kv_heads: {new.heads} heads cannot share {new.kv_heads} evenly")
    if new.width % (2 * new.heads):
        raise UserError(f"config.policy.new.width: must be a multiple of twice the {new.heads} heads, got {new.width}")
    if config.train.unread != "nothing" and not isinstance(config.data, Styles):
        raise UserError("config.train.unread: only applies to a base trained on styles; leave it out")
