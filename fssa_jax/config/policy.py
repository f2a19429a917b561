"""Typed settings of a policy: a language model that follows a person's choices, or the base that it starts from."""

import dataclasses
import math
from dataclasses import field
from typing import Any

from fssa_jax.config.reward import (
    DataConfig,
    EvaluateConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    check_fields,
    choice,
)
from fssa_jax.errors import UserError
from fssa_jax.ops.adapters import PLACES


@dataclasses.dataclass
class EncoderStart:
    """Where the network that reads a person's choices comes from."""

    init_from: str = ""  # workdir of an np_btl reward model, whose data and features are taken too; "": from chance
    frozen: bool = False  # keep it as it is
    auxiliary_weight: float = 0.0  # of the NP-BTL loss of the same targets, beside the policy's


@dataclasses.dataclass
class NewBase:
    """The shape of a language model that is made here (objective "sft" without a base): a small Llama."""

    vocabulary: int = 1024
    width: int = 64
    layers: int = 2
    heads: int = 4
    groups: int = 2
    mlp_width: int = 160
    max_length: int = 2048


@dataclasses.dataclass
class AdapterConfig:
    """What is emitted from the latent; see models/hypernetwork.py."""

    latent: str = choice("context", "none")  # none: plain DPO, one adapter for everybody
    kind: str = choice("film", "lora_core", "lora")
    places: tuple[str, ...] = ("residual",)
    rank: int = 8
    core: str = choice("diagonal", "full")
    hidden: int = 0  # units beside z, of each scale and shift of "film"; 0: linear in z
    width: int = 64  # of what "lora" emits from
    shared_places: tuple[str, ...] = ("query", "value")
    shared_rank: int = 0  # of an ordinary LoRA beside; 0: none
    shared_alpha: float = 0.0  # its scale is alpha / rank; 0: twice the rank


@dataclasses.dataclass
class PolicyModelConfig:
    """The language model and what adapts it."""

    base: str = ""  # directory or hub name of a checkpoint; with objective "sft", "" makes a new one
    dtype: str = choice("float32", "bfloat16")  # of the base and of the computation
    remat: str = choice("none", "full", "dots")
    attention: str = choice("xla", "cudnn", "splash")  # cudnn on GPUs in bfloat16, splash on TPUs
    max_length: int = 512  # tokens of a prompt with its response
    truncate: str = choice("drop", "left", "right")  # what happens to longer ones
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    new: NewBase = field(default_factory=NewBase)


@dataclasses.dataclass
class PolicyObjective:
    """What is minimised; see losses.dpo_loss."""

    kind: str = choice("sigmoid", "robust", "ipo", "hinge", "sft")
    beta: float = 0.5
    label_smoothing: float = 0.0
    length_normalised: bool = False  # log-probabilities a token
    # Share of the loss whose labels are the reward model's probabilities at z, in place of the choices themselves:
    # the same optimum where the reward model is calibrated, with far less noise (cf. arXiv 2405.19316).
    distil: float = 0.0
    sft_weight: float = 1.0  # of −log π(y | x) a token, beside
    # Of which responses: those that were chosen; or all of a person's targets, by the reward model at z (see
    # losses.response_weights; "reward" where all prompts are of one kind, else "advantage"; more `train.targets` are
    # sharper). Who reads no choices, the population's policy and the specialists, imitates what was chosen.
    sft: str = choice("chosen", "advantage", "reward")
    # What z is drawn from, and what the KL divergence of that is taken to: see losses.latent_roles. Both count with a
    # Gaussian latent that is trained.
    latent: str = choice("vpl", "elbo", "published")
    kl_weight: float = 0.0


@dataclasses.dataclass
class PolicyTrainConfig(LoopConfig):
    """The loop of policies. A batch is `users` people with `targets` choices each; of "sft", `texts` texts."""

    steps: int = 600
    steps_per_call: int = 10
    validate_every: int = 200
    checkpoint_every: int = 200
    users: int = 16
    max_context: int = 10
    targets: int = 4
    texts: int = 64
    # Of `styles`, what a new base does not read: texts to the prompts of the choices that held-out people are asked to
    # predict, or all of held-out topics. Of rows it reads those of training people.
    unread: str = choice("nothing", "targets", "topics")
    accumulate: int = 1  # the batch is taken in so many parts, one after the other
    # Texts of a part are sorted by length and padded in so many groups (8 at most), each by itself. With one group a
    # person's sequences share the memory of an adapter; with more, each has its own.
    length_groups: int = 2
    population_steps: int = 200  # of the DPO policy of everybody; 0: none
    oracle_steps: int = 0  # of the specialists, one adapter a group; 0: none


@dataclasses.dataclass
class GenerateConfig:
    """Responses that the evaluation samples."""

    people: int = 64  # sampled for; 0: no generation
    prompts: int = 2  # of each person's held-out prompts
    max_new: int = 128
    temperature: float = 1.0
    top_p: float = 1.0


@dataclasses.dataclass
class PolicyEvaluateConfig(EvaluateConfig):
    """How the policies of held-out people are scored, and how many; see policy/evaluate.py."""

    draws: int = 1
    samples: int = 1  # of the latent: its mean
    users: int = 200  # of the split that are scored at most
    targets: int = 20  # choices of each that are scored at most
    in_context_users: int = 16  # for whom the choices are also written into the prompt; 0: none
    generate: GenerateConfig = field(default_factory=GenerateConfig)


@dataclasses.dataclass
class PolicyConfig:
    """One experiment with a language model. `name` is only a label."""

    name: str = ""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderStart = field(default_factory=EncoderStart)
    model: ModelConfig = field(default_factory=ModelConfig)  # reads the choices; replaced by that of init_from
    policy: PolicyModelConfig = field(default_factory=PolicyModelConfig)
    objective: PolicyObjective = field(default_factory=PolicyObjective)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: PolicyTrainConfig = field(default_factory=PolicyTrainConfig)
    evaluate: PolicyEvaluateConfig = field(default_factory=PolicyEvaluateConfig)

    @property
    def is_sft(self) -> bool:
        """Whether the whole language model is trained, on texts alone."""
        return self.objective.kind == "sft"


_LEAST_VOCABULARY = 261  # every byte, and the special tokens


def check(config: PolicyConfig) -> None:
    """Raises `UserError` on a value that its field does not allow, naming the key."""
    train, policy, adapter = config.train, config.policy, config.policy.adapter
    positive: dict[str, Any] = {
        **{
            f"train.{n}": getattr(train, n)
            for n in ("steps", "users", "targets", "texts", "accumulate", "length_groups")
        },
        **{f"policy.new.{n}": getattr(policy.new, n) for n in ("vocabulary", "width", "layers", "heads", "groups")},
        "policy.max_length": policy.max_length,
        "policy.adapter.rank": adapter.rank,
        "objective.beta": config.objective.beta,
        "evaluate.users": config.evaluate.users,
        "evaluate.targets": config.evaluate.targets,
        "evaluate.generate.max_new": config.evaluate.generate.max_new,
        "policy.adapter.width": adapter.width,
        "policy.new.mlp_width": policy.new.mlp_width,
        "policy.new.max_length": policy.new.max_length,
    }
    check_fields(PolicyConfig, config, positive)
    _check_not_negative(config)
    _check_new_base(policy.new)
    part = config.train.texts if config.is_sft else config.train.users
    if part % train.accumulate:
        raise UserError(
            f"config.train.accumulate: {part} {'texts' if config.is_sft else 'users'} of a batch cannot be "
            f"taken in {train.accumulate} equal parts"
        )
    if train.length_groups > 8:
        raise UserError(
            f"config.train.length_groups: texts are cut at eighths of a batch; give 1 to 8, got {train.length_groups}"
        )
    if not config.is_sft and not policy.base:
        raise UserError(
            "config.policy.base: give a checkpoint's directory or hub name, such as the model that an sft run made"
        )
    if train.unread != "nothing" and not (config.is_sft and config.data.source == "styles"):
        raise UserError("config.train.unread: is of bases that are made of styles (objective.kind=sft); leave it out")
    if config.is_sft:
        _check_texts_alone(config)
    else:
        _check_adapter(adapter)
        _check_encoder(config)
    generate = config.evaluate.generate
    if generate.people and generate.prompts < 1:
        raise UserError("config.evaluate.generate.prompts: must be positive; people=0 turns generation off")
    if config.evaluate.samples != 1:
        raise UserError("config.evaluate.samples: policies are scored at the mean of the latent; leave it at 1")
    if not 0 <= generate.temperature < math.inf or not 0 < generate.top_p <= 1:
        raise UserError("config.evaluate.generate: needs temperature ≥ 0 and top_p in (0, 1]")
    if not 0 <= config.objective.label_smoothing < 0.5 or (
        config.objective.label_smoothing and config.objective.kind not in ("sigmoid", "robust")
    ):
        raise UserError("config.objective.label_smoothing: must be in [0, 0.5), and of kind sigmoid or robust")


def _check_not_negative(config: PolicyConfig) -> None:
    values = {
        "policy.adapter.shared_rank": config.policy.adapter.shared_rank,
        "policy.adapter.hidden": config.policy.adapter.hidden,
        "policy.adapter.shared_alpha": config.policy.adapter.shared_alpha,
        "objective.sft_weight": config.objective.sft_weight,
        "objective.kl_weight": config.objective.kl_weight,
        "encoder.auxiliary_weight": config.encoder.auxiliary_weight,
        "train.population_steps": config.train.population_steps,
        "train.oracle_steps": config.train.oracle_steps,
        "evaluate.in_context_users": config.evaluate.in_context_users,
        "evaluate.generate.people": config.evaluate.generate.people,
    }
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UserError(f"config.{name}: must not be negative, got {value}")


def _check_texts_alone(config: PolicyConfig) -> None:
    """Supervised fine-tuning has no people, so nothing that reads their choices."""
    objective, encoder = config.objective, config.encoder
    default = PolicyObjective()
    for name, given in {
        **{
            f"objective.{key}": getattr(objective, key) != getattr(default, key)
            for key in ("beta", "length_normalised", "distil", "sft", "sft_weight", "latent", "kl_weight")
        },
        "encoder.init_from": encoder.init_from,
        "encoder.frozen": encoder.frozen,
        "encoder.auxiliary_weight": encoder.auxiliary_weight,
    }.items():
        if given:
            raise UserError(f"config.{name}: a base is made of texts, whatever people chose; leave it out")


def _check_new_base(new: NewBase) -> None:
    if new.vocabulary < _LEAST_VOCABULARY:
        raise UserError(
            f"config.policy.new.vocabulary: a tokenizer of bytes needs {_LEAST_VOCABULARY} tokens, got {new.vocabulary}"
        )
    if new.heads % new.groups:
        raise UserError(f"config.policy.new.groups: {new.heads} heads cannot be shared by {new.groups} groups")
    if new.width % (2 * new.heads):
        raise UserError(f"config.policy.new.width: must be a multiple of twice the {new.heads} heads, got {new.width}")


def _check_adapter(adapter: AdapterConfig) -> None:
    for name in ("places", "shared_places"):
        given = getattr(adapter, name)
        if not given or set(given) - set(PLACES) or len(set(given)) < len(given):
            raise UserError(
                f"config.policy.adapter.{name}: must be some of {', '.join(PLACES)}, each once; got {given}"
            )
    default, kind = AdapterConfig(), adapter.kind
    shared = "counts with a LoRA of config.policy.adapter.shared_rank > 0"
    for name, used, what in (
        ("core", kind == "lora_core", "is of kind=lora_core"),
        ("hidden", kind == "film", "counts for kind=film"),
        ("rank", kind != "film", "counts for kind=lora_core and kind=lora"),
        ("width", kind == "lora", "counts for kind=lora"),
        ("shared_places", adapter.shared_rank, shared),
        ("shared_alpha", adapter.shared_rank, shared),
    ):
        if getattr(adapter, name) != getattr(default, name) and not used:
            raise UserError(f"config.policy.adapter.{name}: {what} alone; leave it out")
    low_rank = adapter.places if adapter.kind != "film" else ()
    if "residual" in (*low_rank, *(adapter.shared_places if adapter.shared_rank else ())):
        raise UserError(
            "config.policy.adapter: only film adapts the residual stream; give projections such as ('query', 'value')"
        )


def _check_encoder(config: PolicyConfig) -> None:
    """What reads the choices, and the terms of the loss that are about it."""
    encoder, objective = config.encoder, config.objective
    if config.policy.adapter.latent == "none":
        for name, value in {
            "encoder.init_from": encoder.init_from,
            "encoder.frozen": encoder.frozen,
            "encoder.auxiliary_weight": encoder.auxiliary_weight,
            "objective.distil": objective.distil,
            "objective.kl_weight": objective.kl_weight,
            "objective.latent": objective.latent != "vpl",
            "objective.sft": objective.sft != "chosen",
        }.items():
            if value:
                raise UserError(
                    f"config.{name}: a policy for everybody reads no choices; leave it out, or give "
                    "config.policy.adapter.latent=context"
                )
        return
    if config.model.kind != "np_btl":
        raise UserError(f"config.model.kind: choices are read by np_btl, not by {config.model.kind}")
    if encoder.frozen and not encoder.init_from:
        raise UserError(
            "config.encoder.init_from: name the work directory of a trained np_btl model; or train an encoder from "
            "chance with config.encoder.frozen=False, config.objective.distil=0 and config.objective.sft=chosen"
        )
    if not encoder.init_from:
        # A policy's step reads choices as they are read later: nothing is dropped, nothing is normalised by a batch.
        unused = {
            "encoder.dropout": config.model.encoder.dropout,
            "text_dropout": config.model.text_dropout,
            "norm": config.model.norm != "none",
        }
        for name, value in unused.items():
            if value:
                raise UserError(
                    f"config.model.{name}: has no part in the training of a policy; leave it out, or train "
                    "np_btl with it and name its work directory in config.encoder.init_from"
                )
    if not 0 <= objective.distil <= 1 or (objective.distil and not encoder.init_from):
        raise UserError(
            "config.objective.distil: must be in [0, 1], and 0 without a trained reward model (encoder.init_from)"
        )
    if objective.sft != "chosen" and not objective.sft_weight:
        raise UserError(
            "config.objective.sft: weighs the responses of a term whose config.objective.sft_weight is 0; "
            "give config.objective.sft=chosen"
        )
    if objective.sft != "chosen" and not encoder.frozen:
        raise UserError(
            "config.objective.sft: responses are weighted by a reward model that stays as it is; name it "
            "in config.encoder.init_from and give config.encoder.frozen=True, or sft=chosen"
        )
    if objective.distil and not encoder.frozen:
        raise UserError(
            "config.objective.distil: labels are those of a reward model that stays as it is; give "
            "config.encoder.frozen=True, or distil=0 to train the encoder on the choices"
        )
    if encoder.frozen and encoder.auxiliary_weight:
        raise UserError("config.encoder.auxiliary_weight: a frozen encoder learns nothing from it; give 0")
    if encoder.frozen or not config.model.encoder.gaussian:
        for name, default in (("kl_weight", 0.0), ("latent", "vpl")):
            if getattr(objective, name) != default:
                raise UserError(
                    f"config.objective.{name}: counts with a Gaussian latent that is trained only; give {default}"
                )
