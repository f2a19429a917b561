"""What is minimised, and how."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import number, positive


@dataclasses.dataclass
class NeuralProcess:
    """The loss of reward models; see ops/losses.py."""

    kind: Literal["vpl", "elbo", "published", "predictive"] = "vpl"
    """What z is drawn from, and what the KL divergence is taken to; counts with a Gaussian latent."""
    kl_weight: float = number(0.01, least=0)
    """Of that divergence."""
    samples: int = positive(1)
    """Of a Gaussian latent."""
    text_penalty: float = number(0.0, least=0)
    """L2 of the learnt embeddings, summed over texts."""
    text_bias_penalty: float = number(0.0, least=0)
    """L2 of the learnt population rewards, summed over texts."""


@dataclasses.dataclass
class _Preference:
    beta: float = positive(0.5)
    """How dear it is to leave the base."""
    length_normalised: bool = False
    """Log-probabilities per token."""
    sft_weight: float = number(1.0, least=0)
    """Of −log π(y | x) per token of the responses that are imitated."""


@dataclasses.dataclass
class Dpo(_Preference):
    """−log σ(βh) (arXiv 2305.18290)."""

    label_smoothing: float = number(0.0, least=0, below=0.5)
    """Share of choices that are taken to be wrong (conservative DPO)."""


@dataclasses.dataclass
class RobustDpo(_Preference):
    """Unbiased under random flips of the choices (arXiv 2403.00409)."""

    label_smoothing: float = number(0.1, least=0, below=0.5)
    """Share of choices that are flipped."""


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
    """At its peak."""
    warmup_steps: int = number(100, least=0)
    """Steps of linear warm-up."""
    final_fraction: float = number(0.0, least=0)
    """Of the learning rate, at the end of the cosine."""
    weight_decay: float = number(1e-2, least=0)
    """Decoupled from the gradient."""
    b1: float = number(0.9, least=0, below=1)
    """Decay of the first moment."""
    b2: float = number(0.999, least=0, below=1)
    """Decay of the second moment."""
    eps: float = positive(1e-8)
    """Added to the root of the second moment."""
    clip_norm: float = positive(1.0)
    """Of the gradient."""
    average_decay: float = number(0.0, least=0, below=1)
    """Of an exponential average of the parameters that predicts in their place; 0 for none."""
