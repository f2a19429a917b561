"""Language models, the adapters that steer them, and the encoder that reads a person's choices."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import group, number, positive
from fssa_jax.config.model import NpBtl

Projection = Literal["query", "key", "value", "out", "gate", "up", "down"]


@dataclasses.dataclass
class SharedLora:
    """An ordinary LoRA, the same for everybody, next to the adapter (arXiv 2106.09685)."""

    places: tuple[Projection, ...] = ("query", "value")
    """Adapted projections."""
    rank: int = number(0, least=0)
    """Rank; 0 for no LoRA."""
    alpha: float = number(0.0, least=0)
    """The scale is alpha / rank; 0 for twice the rank."""


@dataclasses.dataclass
class Film:
    """y ← γ(z) ⊙ y + β(z) (arXiv 1709.07871)."""

    places: tuple[Literal["query", "key", "value", "out", "gate", "up", "down", "residual"], ...] = ("residual",)
    """Projections, or the residual stream after every block, as published."""
    layers: int = number(0, least=0)
    """Number of layers that are adapted, the last ones; 0 for all."""
    hidden: int = number(0, least=0)
    """Hidden units per scale and shift, concatenated with z; 0 for linear in z, as published."""
    shared: SharedLora = group(SharedLora)
    """An additional LoRA, shared by everybody."""


@dataclasses.dataclass
class LoraCore:
    """y ← y + B M(z) A x, with A and B shared by everybody."""

    places: tuple[Projection, ...] = ("query", "value", "out", "gate", "up", "down")
    """Adapted projections."""
    layers: int = number(0, least=0)
    """As in `Film`."""
    rank: int = positive(8)
    """Rank of A and B."""
    core: Literal["diagonal", "full"] = "diagonal"
    """Shape of M."""
    shared: SharedLora = group(SharedLora)
    """An additional LoRA, shared by everybody."""


@dataclasses.dataclass
class Lora:
    """y ← y + B(z) A(z) x, both factors emitted per layer and projection."""

    places: tuple[Projection, ...] = ("query", "value", "out", "gate", "up", "down")
    """Adapted projections."""
    layers: int = number(0, least=0)
    """As in `Film`."""
    rank: int = positive(8)
    """Rank of A and B."""
    width: int = positive(64)
    """Width of the embeddings and of the hidden layer of the hypernetwork."""
    shared: SharedLora = group(SharedLora)
    """An additional LoRA, shared by everybody."""


Adapter = Film | LoraCore | Lora


@dataclasses.dataclass
class FrozenEncoder:
    """The frozen encoder of a trained reward model, which also teaches the policy."""

    init_from: str = ""
    """Work directory of an np_btl model; also the source of people, texts and features if the policy names none."""
    distil: float = number(0.0, least=0, most=1)
    """Share of the loss whose labels are the reward model's probabilities at z instead of the choices. The optimum is
    the same if the reward model is calibrated, with far less noise (cf. arXiv 2405.19316)."""
    pairs: Literal["chosen", "ranked"] = "chosen"
    """Pairs to train on: the choices, or for every choice two responses to its prompt that the reward model thinks the
    person likes best and least among all in the training data; see data/ranked.py. Wants `distil` 1, as nobody chose
    between them, and several responses per prompt."""
    imitate: Literal["chosen", "advantage", "reward"] = "chosen"
    """Responses of the SFT term: the chosen ones, or both responses of all targets weighted by the reward model; see
    `response_weights` in ops/losses.py."""
    model: NpBtl = group(NpBtl)
    """The model of `init_from`; filled in from there."""


@dataclasses.dataclass
class WarmEncoder:
    """The encoder of a trained reward model, fine-tuned together with the policy."""

    init_from: str = ""
    """As in `FrozenEncoder`."""
    model: NpBtl = group(NpBtl)
    """As in `FrozenEncoder`."""
    auxiliary_weight: float = number(0.0, least=0)
    """Weight of the NP-BTL loss on the same targets, added to the policy's loss."""
    divergence: Literal["vpl", "elbo", "published"] = "vpl"
    """Distribution that z is sampled from, and reference of the KL divergence; for a Gaussian latent only."""
    kl_weight: float = number(0.0, least=0)
    """Weight of the KL divergence."""


@dataclasses.dataclass
class NewEncoder:
    """An encoder from random init, trained together with the policy, as published."""

    model: NpBtl = group(NpBtl)
    """The reward model that provides the encoder."""
    auxiliary_weight: float = number(0.0, least=0)
    """As in `WarmEncoder`."""
    divergence: Literal["vpl", "elbo", "published"] = "vpl"
    """As in `WarmEncoder`."""
    kl_weight: float = number(0.0, least=0)
    """As in `WarmEncoder`."""


@dataclasses.dataclass
class NoEncoder:
    """No choices are read: plain DPO, one adapter for everybody."""


PolicyEncoder = FrozenEncoder | WarmEncoder | NewEncoder | NoEncoder


@dataclasses.dataclass
class _LanguageModel:
    base: str = ""
    """Directory or hub name of a checkpoint."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the base's weights and of the computation."""
    remat: Literal["none", "full", "dots"] = "none"
    """Rematerialisation in the backward pass: none, whole blocks, or everything but the matrix products (`dots`)."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Implementation of attention: cudnn on GPUs in bfloat16, splash on TPUs. auto is cudnn where
    it runs, else xla."""
    max_length: int = positive(512)
    """Maximum tokens of a prompt with its response."""
    truncate: Literal["drop", "left", "right"] = "drop"
    """Longer texts: dropped, or cut at the start of the prompt (`left`) or the end of the response (`right`)."""


@dataclasses.dataclass
class SteeredModel(_LanguageModel):
    """The frozen language model that is steered, and its adapter."""

    adapter: Adapter = group(Film)
    """The adapter that steers the model."""
    cache_states: Literal["auto", "no", "yes"] = "auto"
    """Keep the states below the adapted layers, which no adapter changes, of all texts in memory, computed once. `auto`
    does if two copies take at most a quarter of it."""


@dataclasses.dataclass
class NewModel:
    """The shape of the small Llama that is trained from scratch if no base is named."""

    vocabulary: int = number(1024, least=261)
    """Tokens of its byte-level BPE; at least all bytes and the special tokens."""
    width: int = positive(64)
    """Width of the residual stream."""
    layers: int = positive(2)
    """Number of blocks."""
    heads: int = positive(4)
    """Attention heads."""
    kv_heads: int = positive(2)
    """Key and value heads."""
    mlp_width: int = positive(160)
    """Width of the gated MLP."""
    max_length: int = positive(2048)
    """Number of positions."""


@dataclasses.dataclass
class TunedLora:
    """A LoRA that is trained instead of all weights (arXiv 2106.09685)."""

    rank: int = number(0, least=0)
    """Rank; 0 to train all weights."""
    places: tuple[Projection, ...] = ("query", "value", "out", "gate", "up", "down")
    """Adapted projections."""
    layers: int = number(0, least=0)
    """As in `Film`."""
    alpha: float = number(0.0, least=0)
    """The scale is alpha / rank; 0 means alpha = rank, a scale of 1."""


@dataclasses.dataclass
class TrainedModel(_LanguageModel):
    """The language model that supervised fine-tuning trains."""

    new: NewModel = group(NewModel)
    """Shape of the new model, if `base` is empty."""
    lora: TunedLora = group(TunedLora)
    """Train a LoRA of the base; WORKDIR/model is then a LoRA in the format of PEFT, which policies take as their
    base."""
    cache_states: Literal["auto", "no", "yes"] = "auto"
    """As in `SteeredModel`, below the layers of the LoRA."""
