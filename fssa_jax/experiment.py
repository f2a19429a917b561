"""From a configuration to the objects that training and evaluation share: model, data, episodes."""

import dataclasses
from functools import partial
from typing import Literal

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
    fields = {f.name: getattr(model.encoder, f.name) for f in dataclasses.fields(model.encoder)}
    return RewardModel(
        likelihood="dpl" if model.kind == "dpl" and role == "main" else "btl",
        link=model.link,
        latent=latent,  # type: ignore[arg-type]
        encoder=NPEncoder(**fields) if latent != "none" else None,
        groups=len(dataset.groups),
        target=model.target,
        width=model.width,
        head=model.head,
        norm=model.norm,
        population=model.population,
        learnt_texts=len(dataset.texts) if model.learn_texts else 0,
        text_dropout=model.text_dropout,
        axis_name=axis_name,
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
