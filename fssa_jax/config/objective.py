"""Losses and the optimiser."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import number, positive


@dataclasses.dataclass
class NeuralProcess:
    """The loss of reward models; see ops/losses.py."""

    kind: Literal["vpl", "elbo", "published", "predictive"] = "vpl"
    """Distribution that z is sampled from, and reference of the KL divergence; for a Gaussian latent only."""
    kl_weight: float = number(0.01, least=0)
    """Weight of the KL divergence."""
    samples: int = positive(1)
    """Samples of a Gaussian latent."""
    response_penalty: float = number(0.0, least=0)
    """Weight of the L2 penalty on the weights of the network that encodes a response."""
    population_penalty: float = number(0.0, least=0)
    """Weight of the L2 penalty on the weights of the population reward."""
    text_penalty: float = number(0.0, least=0)
    """Weight of the L2 penalty on learnt embeddings, summed over texts."""
    text_bias_penalty: float = number(0.0, least=0)
    """Weight of the L2 penalty on learnt population rewards, summed over texts."""


@dataclasses.dataclass
class _Preference:
    beta: float = positive(0.5)
    """β: the larger, the closer the policy stays to the base."""
    length_normalised: bool = False
    """Log-probabilities per token."""
    sft_weight: float = number(1.0, least=0)
    """Weight of the SFT term: −log π(y | x) per token of the imitated responses."""


@dataclasses.dataclass
class Dpo(_Preference):
    """−log σ(βh) (arXiv 2305.18290)."""

    label_smoothing: float = number(0.0, least=0, below=0.5)
    """Assumed share of wrong choices (conservative DPO)."""


@dataclasses.dataclass
class RobustDpo(_Preference):
    """Unbiased under random flips of the choices (arXiv 2403.00409)."""

    label_smoothing: float = number(0.1, least=0, below=0.5)
    """Assumed share of flipped choices."""


@dataclasses.dataclass
class Ipo(_Preference):
    """(h − 1 / 2β)² (arXiv 2310.12036)."""


@dataclasses.dataclass
class Hinge(_Preference):
    """max(0, 1 − βh) (SLiC, arXiv 2305.10425)."""


PreferenceLoss = Dpo | RobustDpo | Ipo | Hinge


@dataclasses.dataclass
class AdamW:
    """AdamW with linear warm-up, cosine decay and clipping by the global norm."""

    learning_rate: float = positive(1e-3)
    """Peak learning rate."""
    warmup_steps: int = number(100, least=0)
    """Steps of linear warm-up."""
    final_fraction: float = number(0.0, least=0)
    """Final learning rate, as a fraction of the peak."""
    decay_steps: int = number(0, least=0)
    """Steps until the cosine decay ends, after which the rate stays; 0 for the steps of the training. Training can be
    extended later if this is given."""
    weight_decay: float = number(1e-2, least=0)
    """Decoupled weight decay."""
    b1: float = number(0.9, least=0, below=1)
    """Decay of the first moment."""
    b2: float = number(0.999, least=0, below=1)
    """Decay of the second moment."""
    eps: float = positive(1e-8)
    """Added to the root of the second moment."""
    clip_norm: float = positive(1.0)
    """Maximum global norm of the gradient."""
    average_decay: float = number(0.0, least=0, below=1)
    """Decay of an exponential average of the parameters, which is used for prediction; 0 for none."""
