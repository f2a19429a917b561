"""From a configuration to the objects that training and evaluation share: model, data, episodes."""

import copy
import dataclasses
import logging
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.reward import Config, EncoderConfig
from fssa_jax.data.benchmarks import synthetic
from fssa_jax.data.dataset import Dataset, seen_in_training
from fssa_jax.models.bayes_encoder import BayesEncoder
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.train.roles import Role
from fssa_jax.train.step import Data, DrawEpisode

_log = logging.getLogger(__name__)


def resolve(config: Config, dataset: Dataset, quiet: bool = False) -> Config:
    """The configuration with everything that the data decide: what is saved in a work directory.

    learn_texts "auto" is "yes" where at least half of the held-out choices are about two texts that training
    rows judge too. With "no" there is nothing to look up or to factorise: the reward is linear in the features,
    and choices are comparisons. Contexts and targets of training are no longer than the rows of a user.
    """
    say = _log.debug if quiet else _log.info
    config = copy.deepcopy(config)
    model, sizes = config.model, config.train
    rows = dataset.splits["train"].table.chosen.shape[2]
    if config.data.source not in synthetic.SOURCES:
        for name in ("max_context", "targets"):
            if getattr(sizes, name) > rows:
                say("no training user has more than %d rows in a pool: config.train.%s=%d", rows, name, rows)
                setattr(sizes, name, rows)
    if model.learn_texts == "auto":
        share = _known_share(dataset)
        model.learn_texts = "yes" if share >= 0.5 else "no"
        say(
            "%.0f %% of the held-out choices are about texts that training rows judge: %s (config.model.learn_texts)",
            100 * share,
            "a learnt embedding a text" if model.learn_texts == "yes" else "rewards from features alone",
        )
    if model.learn_texts == "no":
        if model.target == "none":
            say("rewards are linear in the features of a text: config.model.target=linear")
            model.target = "linear"
        model.encoder.observations = ("difference",)
        sizes.factor_steps = 0
    return config


def _known_share(dataset: Dataset) -> float:
    """The share of the held-out choices whose two texts both occur in training rows."""
    seen = seen_in_training(dataset)
    known = []
    for name in ("val", "test"):
        table = dataset.splits[name].table
        known.append((seen[np.asarray(table.chosen)] & seen[np.asarray(table.rejected)])[np.asarray(table.mask)])
    return float(np.concatenate(known).mean())


def make_model(config: Config, dataset: Dataset, role: Role = "main", axis_name: str | None = None) -> RewardModel:
    """The reward model of a role.

    "population" is BTL on everybody. "oracle" is the main model told the user's group, with one learnt
    latent a group, in place of the context: a specialist for every group, sharing the text encoder.
    """
    model = config.model
    main_latent = "context" if model.kind == "np_btl" else "none"
    latent = {"main": main_latent, "population": "none", "oracle": "group"}[role]
    # The words were checked with the configuration; the modules' types are literal.
    names = ("link", "target", "width", "head", "norm", "population", "text_dropout")
    same: dict[str, Any] = {name: getattr(model, name) for name in names}
    return RewardModel(
        likelihood="dpl" if model.kind == "dpl" and role == "main" else "btl",
        latent=latent,  # type: ignore[arg-type]
        encoder=_make_encoder(model.encoder) if latent != "none" else None,
        groups=len(dataset.groups),
        learnt_texts=len(dataset.texts) if model.learn_texts == "yes" else 0,
        axis_name=axis_name,
        **same,
    )


def _make_encoder(config: EncoderConfig) -> SetEncoder | BayesEncoder:
    kind = BayesEncoder if config.aggregation == "bayes" else SetEncoder
    known = kind.__dataclass_fields__
    # The words were checked with the configuration; the modules' types are literal.
    values: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in known}
    return kind(**values)


def make_draw(config: Config, role: Role = "main") -> DrawEpisode:
    """How one training episode is drawn. Models without a context do not draw one."""
    needs_context = role == "main" and config.model.kind == "np_btl"
    sizes = {"max_context": config.train.max_context if needs_context else 0, "max_targets": config.train.targets}
    if config.data.source in synthetic.SOURCES:
        return lambda key, data: synthetic.draw_episode(key, data.choices, **sizes)
    draw = partial(draw_episode, **sizes)
    return lambda key, data: draw(key, data.choices)


def training_data(config: Config, dataset: Dataset) -> Data:
    """What the training step reads on the device."""
    if config.data.source == "synthetic":
        return Data()
    if config.data.source == "synthetic_published":
        return Data(jnp.asarray(synthetic.published_pairs("train"), jnp.float32))
    return Data(jax.tree.map(jnp.asarray, dataset.splits["train"].table), jnp.asarray(dataset.features))
