"""Reward models, and the encoders that read a person's choices."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import group, number, positive


@dataclasses.dataclass
class SetEncoder:
    """The paper's encoder: encode every choice, then aggregate the set; see models/set_encoder.py."""

    width: int = positive(128)
    """Width of the encoded choices."""
    latent_dim: int = positive(64)
    """Size of z."""
    pair: Literal["linear", "mlp"] = "mlp"
    """Network that encodes one choice."""
    inputs: tuple[Literal["chosen", "rejected", "difference", "margin"], ...] = ("chosen", "rejected")
    """Inputs per choice; `margin` is the reward difference under the population model."""
    aggregation: Literal["mean", "sum", "attention"] = "attention"
    """How the choices of a person are aggregated."""
    pool: Literal["mean", "sum"] = "mean"
    """How the outputs of attention are pooled."""
    prior_choice: bool = True
    """Add one learnt pseudo-choice to every context."""
    residual: bool = True
    """Attention with a residual connection and a norm before it."""
    heads: int = positive(8)
    """Attention heads."""
    dropout: float = number(0.0, least=0, below=1)
    """Dropout of the attention weights."""
    gaussian: bool = False
    """z is drawn from N(μ, diag σ²); otherwise it is the mean."""


@dataclasses.dataclass
class NormalPrior:
    """A normal prior over people; the posterior's mode by Newton's method."""

    rounds: int = positive(1)
    """Newton steps."""


@dataclasses.dataclass
class DiscretePrior:
    """A discrete prior over people; the posterior is exact."""

    kinds: int = positive(512)
    """Number of support points: kinds of people."""


@dataclasses.dataclass
class BayesEncoder:
    """Bayes' rule with a learnt prior over people; see models/bayes_encoder.py. z has the width of the reward model."""

    observations: tuple[Literal["difference", "responses"], ...] = ("difference",)
    """How a choice is read: as one comparison, as a like and a dislike of the two responses, or both."""
    prior: NormalPrior | DiscretePrior = group(NormalPrior)
    """Prior over people."""
    gaussian: bool = False
    """z is integrated out, over the posterior; otherwise it is the mean."""
    lapses: bool = False
    """A learnt share of choices is random, in what is read and in what is predicted."""


@dataclasses.dataclass
class Btl:
    """One reward for everybody (Bradley-Terry-Luce)."""

    width: int = positive(128)
    """Width of the hidden layers."""
    population: Literal["linear", "mlp"] = "mlp"
    """The reward as a function of the features."""
    learn_texts: Literal["no", "yes", "auto"] = "no"
    """A learnt reward per text. `auto`: where most choices of validation people are about texts that training rows
    judge too."""


@dataclasses.dataclass
class Dpl(Btl):
    """A normal distribution of rewards per response, the same for everybody (arXiv 2312.08358)."""

    link: Literal["probit", "logistic", "logistic_published"] = "probit"
    """Link function of the likelihood; see ops/likelihoods.py."""


@dataclasses.dataclass
class Part:
    """One of several NP-BTL models that are averaged: its settings, in place of those of the configuration."""

    weight: float = number(1.0, above=0)
    """Weight of its predictions; the weights are divided by their sum."""
    response: Literal["none", "linear", "mlp"] = "linear"
    """As in `NpBtl`."""
    width: int = positive(16)
    """As in `NpBtl`."""
    observations: tuple[Literal["difference", "responses"], ...] = ("difference",)
    """As in `BayesEncoder`."""
    prior: NormalPrior | DiscretePrior = group(NormalPrior)
    """As in `BayesEncoder`."""
    learning_rate: float = number(1e-2, above=0)
    """As in `AdamW`."""
    factor_steps: int = number(0, least=0)
    """As in `RewardTraining`."""
    response_penalty: float = number(0.0, least=0)
    """As in `NeuralProcess`."""
    text_penalty: float = number(0.0, least=0)
    """As in `NeuralProcess`."""


@dataclasses.dataclass
class NpBtl:
    """NP-BTL: r(x, y, z) with z inferred from the person's choices (arXiv 2412.13998, section 3); models/rewards.py."""

    encoder: SetEncoder | BayesEncoder = group(SetEncoder)
    """The encoder that infers z from the choices."""
    response: Literal["none", "linear", "mlp"] = "mlp"
    """Network that encodes a response; `none` only with learnt texts."""
    width: int = positive(128)
    """Width of the encoded responses."""
    head: Literal["concat", "bilinear"] = "concat"
    """How the encoded response and z are combined into a reward."""
    population: Literal["none", "linear", "mlp"] = "none"
    """A reward shared by everybody that is added, initialised from the population model."""
    learn_texts: Literal["no", "yes", "auto"] = "no"
    """A learnt embedding per text, for new users on known texts. `auto`: where most choices of validation people are
    about texts that training rows judge too. With `no`, `response` none becomes linear, and a choice is one
    comparison."""
    text_dropout: float = number(0.0, least=0, below=1)
    """Share of the texts whose learnt embedding is dropped in a training step."""
    keep_population: bool = False
    """The shared reward stays that of the population model, times a learnt scale, so that z = 0 is the population
    model. The mean of z, which a BayesEncoder learns, is what people share beyond it."""
    feature_scale: float = number(1.0, least=0)
    """Factor of the features; 0 for the one that gives them a total variance of 1 on the training texts."""
    members: int = positive(1)
    """Models that are trained from different seeds and averaged, see models/ensemble.py; training, memory and
    prediction cost as many times as much."""
    parts: tuple[Part, ...] = ()
    """Models of different kinds that are averaged, each `members` times, in place of one with these settings.
    `config.auto` decides them."""


RewardModel = Btl | Dpl | NpBtl
