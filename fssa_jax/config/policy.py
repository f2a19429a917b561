"""Language models, what adapts them to a person, and the encoder that tells who the person is."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import group, number, positive
from fssa_jax.config.model import NpBtl

Projection = Literal["query", "key", "value", "out", "gate", "up", "down"]


@dataclasses.dataclass
class SharedLora:
    """An ordinary LoRA, the same for everybody, next to the adapter (arXiv 2106.09685)."""

    places: tuple[Projection, ...] = ("query", "value")
    """Projections that it adapts."""
    rank: int = number(0, least=0)
    """0 for none."""
    alpha: float = number(0.0, least=0)
    """Its scale is alpha / rank; 0 for twice the rank."""


@dataclasses.dataclass
class Film:
    """y ← γ(z) ⊙ y + β(z) (arXiv 1709.07871)."""

    places: tuple[Literal["query", "key", "value", "out", "gate", "up", "down", "residual"], ...] = ("residual",)
    """Projections, or the residual stream after every block, as published."""
    hidden: int = number(0, least=0)
    """Hidden units next to z, of each scale and shift; 0 for linear in z, as published."""
    shared: SharedLora = group(SharedLora)
    """A LoRA of everybody next to it."""


@dataclasses.dataclass
class LoraCore:
    """y ← y + B M(z) A x, with A and B shared by everybody."""

    places: tuple[Projection, ...] = ("query", "value", "out", "gate", "up", "down")
    """Projections that it adapts."""
    rank: int = positive(8)
    """Of A and B."""
    core: Literal["diagonal", "full"] = "diagonal"
    """Shape of M."""
    shared: SharedLora = group(SharedLora)
    """A LoRA of everybody next to it."""


@dataclasses.dataclass
class Lora:
    """y ← y + B(z) A(z) x, both factors emitted per layer and projection."""

    places: tuple[Projection, ...] = ("query", "value", "out", "gate", "up", "down")
    """Projections that it adapts."""
    rank: int = positive(8)
    """Of A and B."""
    width: int = positive(64)
    """Of the embeddings and of the hidden layer of the hypernetwork."""
    shared: SharedLora = group(SharedLora)
    """A LoRA of everybody next to it."""


Adapter = Film | LoraCore | Lora


@dataclasses.dataclass
class FrozenEncoder:
    """The encoder of a trained reward model, which stays as it is and teaches the policy."""

    init_from: str = ""
    """Work directory of an np_btl model; its people, texts and features are taken too where the policy names none."""
    distil: float = number(0.0, least=0, most=1)
    """Share of the loss whose labels are the reward model's probabilities at z in place of the choices: the same
    optimum where the reward model is calibrated, with far less noise (cf. arXiv 2405.19316)."""
    imitate: Literal["chosen", "advantage", "reward"] = "chosen"
    """Responses of the SFT term: what was chosen, or all of a person's targets weighted by the reward model; see
    ops/losses.py, `response_weights`."""
    model: NpBtl = group(NpBtl)
    """That of `init_from`, which is taken over."""


@dataclasses.dataclass
class WarmEncoder:
    """The encoder of a trained reward model, trained on with the policy."""

    init_from: str = ""
    """As of `FrozenEncoder`."""
    model: NpBtl = group(NpBtl)
    """As of `FrozenEncoder`."""
    auxiliary_weight: float = number(0.0, least=0)
    """Of the NP-BTL loss of the same targets, next to the policy's."""
    divergence: Literal["vpl", "elbo", "published"] = "vpl"
    """What z is drawn from, and what the KL divergence is taken to; counts with a Gaussian latent."""
    kl_weight: float = number(0.0, least=0)
    """Of that divergence."""


@dataclasses.dataclass
class NewEncoder:
    """An encoder from random init, trained with the policy, as published."""

    model: NpBtl = group(NpBtl)
    """The reward model whose encoder it is."""
    auxiliary_weight: float = number(0.0, least=0)
    """As of `WarmEncoder`."""
    divergence: Literal["vpl", "elbo", "published"] = "vpl"
    """As of `WarmEncoder`."""
    kl_weight: float = number(0.0, least=0)
    """As of `WarmEncoder`."""


@dataclasses.dataclass
class NoEncoder:
    """Nobody's choices are read: plain DPO, one adapter for everybody."""


PolicyEncoder = FrozenEncoder | WarmEncoder | NewEncoder | NoEncoder


@dataclasses.dataclass
class _LanguageModel:
    base: str = ""
    """Directory or hub name of a checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base and of the computation."""
    remat: Literal["none", "full", "dots"] = "none"
    """What is computed again in the backward pass: nothing, whole blocks, or all but their matrix products."""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """Implementation: cudnn on GPUs in bfloat16, splash on TPUs."""
    max_length: int = positive(512)
    """Tokens of a prompt with its response."""
    truncate: Literal["drop", "left", "right"] = "drop"
    """What happens to longer ones."""


@dataclasses.dataclass
class SteeredModel(_LanguageModel):
    """The language model that is steered, which itself stays as it is, and what adapts it."""

    adapter: Adapter = group(Film)
    """What adapts it to a person."""


@dataclasses.dataclass
class NewModel:
    """The shape of a small Llama that is made where no base is named."""

    vocabulary: int = number(1024, least=261)
    """Tokens of its byte-level BPE: every byte, and the special tokens at least."""
    width: int = positive(64)
    """Of the residual stream."""
    layers: int = positive(2)
    """Blocks."""
    heads: int = positive(4)
    """Of attention."""
    kv_heads: int = positive(2)
    """Heads of key and value."""
    mlp_width: int = positive(160)
    """Of the gated MLP."""
    max_length: int = positive(2048)
    """Positions."""


@dataclasses.dataclass
class TrainedModel(_LanguageModel):
    """The language model that supervised fine-tuning trains."""

    new: NewModel = group(NewModel)
    """The shape of the model that is made where `base` is empty."""
