"""From a configuration to the objects that training and evaluation share: model, data, episodes."""

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fssa_jax.config import Config
from fssa_jax.data import synthetic
from fssa_jax.data.dataset import Dataset
from fssa_jax.episodes import draw_episode
from fssa_jax.models.encoder import NPEncoder
from fssa_jax.models.rewards import RewardModel
from fssa_jax.step import Data, DrawEpisode

# The model asked for, and the two that are always reported beside it.
Role = Literal["main", "population", "oracle"]


def make_model(config: Config, dataset: Dataset, role: Role = "main", axis_name: str | None = None) -> RewardModel:
    """The reward model of a role.

    "population" is BTL on everybody. "oracle" is the main model told the user's group, with one learnt
    latent a group, in place of the context: a specialist for every group, sharing the text encoder.
    """
    model = config.model
    main_latent = "context" if model.kind == "np_btl" else "none"
    latent = {"main": main_latent, "population": "none", "oracle": "group"}[role]
    # The words were checked with the configuration; the modules' types are literal.
    fields: dict[str, Any] = {f.name: getattr(model.encoder, f.name) for f in dataclasses.fields(model.encoder)}
    names = ("link", "target", "width", "head", "norm", "population", "text_dropout")
    same: dict[str, Any] = {name: getattr(model, name) for name in names}
    return RewardModel(
        likelihood="dpl" if model.kind == "dpl" and role == "main" else "btl",
        latent=latent,  # type: ignore[arg-type]
        encoder=NPEncoder(**fields) if latent != "none" else None,
        groups=len(dataset.groups),
        learnt_texts=len(dataset.texts) if model.learn_texts else 0,
        axis_name=axis_name,
        **same,
    )


def make_draw(config: Config, role: Role = "main") -> DrawEpisode:
    """How one training episode is drawn. Models without a context do not draw one."""
    needs_context = role == "main" and config.model.kind == "np_btl"
    sizes = {
        "max_context": config.train.max_context if needs_context else 0,
        "max_targets": config.train.targets,
    }
    if config.data.source == "synthetic":
        return lambda key, data: synthetic.draw_episode(key, **sizes)
    draw = partial(draw_episode, **sizes)
    return lambda key, data: draw(key, data.choices)


def training_data(config: Config, dataset: Dataset) -> Data:
    """What the training step reads on the device."""
    if config.data.source == "synthetic":
        return Data()
    return Data(jax.tree.map(jnp.asarray, dataset.splits["train"].table), jnp.asarray(dataset.features))
