"""From settings and data to the modules of reward models: sizes and kinds that depend on the data are resolved here."""

import copy
import dataclasses
import logging
from typing import Any

import numpy as np

from fssa_jax import config as configs
from fssa_jax.config import Dpl, NpBtl, RewardConfig, Synthetic
from fssa_jax.data.dataset import Dataset, all_of, has_lists, seen_in_training
from fssa_jax.data.thresholds import thresholds_of
from fssa_jax.errors import UserError
from fssa_jax.models import rewards
from fssa_jax.models.bayes_encoder import BayesEncoder
from fssa_jax.models.ensemble import Ensemble
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.tasks.task import MAIN, POPULATION, SPECIALIST

_log = logging.getLogger(__name__)


def make_model(settings: Any, dataset: Dataset, name: str = MAIN) -> rewards.RewardModel:
    """The module of a model.

    "population" is BTL on everybody. "specialist" is the main model with one learnt latent per group instead of the
    context: one specialist per group, with a shared encoder of responses.
    """
    learnt_texts = dataset.known_texts if settings.learn_texts == "yes" else 0
    if isinstance(settings, NpBtl):
        population = rewards.RewardModel(
            latent="none",
            width=settings.width,
            population=settings.population,
            learnt_texts=learnt_texts,
            feature_scale=float(settings.feature_scale),
        )
        if name == POPULATION:
            return population
        single = population.clone(
            latent="group" if name == SPECIALIST else "context",
            encoder=make_encoder(settings),
            groups=len(dataset.groups),
            target=settings.response,
            head=settings.head,
            text_dropout=float(settings.text_dropout),
            keep_population=settings.keep_population,
            thresholds=len(thresholds_of(dataset.featuriser)),
        )
        members = members_of(settings)
        if name != MAIN or len(members) == 1:
            return single
        return Ensemble.of([make_model(one, dataset) for one, _ in members], [weight for _, weight in members])
    likelihood, link = ("dpl", settings.link) if isinstance(settings, Dpl) and name == MAIN else ("btl", "probit")
    return rewards.RewardModel(
        likelihood=likelihood,
        link=link,
        latent="group" if name == SPECIALIST else "none",
        groups=len(dataset.groups),
        target=settings.population,
        width=settings.width,
        population=settings.population,
        learnt_texts=learnt_texts,
    )


def members_of(settings: NpBtl) -> list[tuple[NpBtl, float]]:
    """The settings of each model that is averaged, without members of its own, and its weight; of one, itself."""
    if not settings.parts:
        return [(dataclasses.replace(settings, members=1), 1.0)] * settings.members
    out = []
    for part in settings.parts:
        encoder: Any = settings.encoder
        encoder = dataclasses.replace(encoder, observations=part.observations, prior=part.prior)
        own = {"response": part.response, "width": part.width, "encoder": encoder}
        out.append((dataclasses.replace(settings, **own, members=1, parts=()), part.weight))
    return [one for one in out for _ in range(settings.members)]


def make_encoder(settings: NpBtl) -> SetEncoder | BayesEncoder:
    """The encoder of an NP-BTL model."""
    chosen = settings.encoder
    if isinstance(chosen, configs.SetEncoder):
        return SetEncoder(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)})
    rounds, kinds = getattr(chosen.prior, "rounds", 1), getattr(chosen.prior, "kinds", 0)
    return BayesEncoder(chosen.observations, rounds, kinds, gaussian=chosen.gaussian, lapses=chosen.lapses)


def resolve_model(settings: Any, dataset: Dataset, quiet: bool = False) -> Any:
    """The model's settings with those that depend on the data filled in.

    learn_texts "auto" becomes "yes" if at least half of the choices of validation people are about two texts that
    training rows judge too. With "no", `response` none becomes linear, and choices are read as comparisons.
    """
    say = _log.debug if quiet else _log.info
    settings = copy.deepcopy(settings)
    if settings.learn_texts == "auto":
        share = _known_share(dataset)
        settings.learn_texts = "yes" if share >= 0.5 else "no"
        what = "a learnt embedding per text" if settings.learn_texts == "yes" else "rewards from features alone"
        said = "%.0f %% of the choices of validation people are about texts that training rows judge: %s (learn_texts)"
        say(said, 100 * share, what)
    if settings.learn_texts == "no" and isinstance(settings, NpBtl) and settings.response == "none":
        say("rewards are linear in the features of a text: response=linear")
        settings.response = "linear"
    if isinstance(settings, NpBtl) and not settings.feature_scale:
        settings.feature_scale = _unit_scale(dataset)
    lists = has_lists(dataset)
    encoder = settings.encoder if isinstance(settings, NpBtl) else None
    if isinstance(encoder, configs.BayesEncoder) and (lists or settings.learn_texts == "no"):
        encoder.observations = ("difference",)
        for part in getattr(settings, "parts", ()):
            part.observations = ("difference",)
    if settings.learn_texts == "no":
        for part in getattr(settings, "parts", ()):
            part.response = "linear" if part.response == "none" else part.response
    if isinstance(settings, Dpl) and lists:
        raise UserError("config.model: DPL is for choices between two responses, but these are among more; use BTL")
    return settings


def model_settings(config: Any) -> Any:
    """The settings of the reward model of an experiment, which is that of the encoder for a policy."""
    return config.model if isinstance(config, RewardConfig) else getattr(config.encoder, "model", None)


def check_lists(settings: Any, place: str) -> None:
    """Raises `UserError` for a model that cannot read or predict choices of one among more than two responses."""
    encoders = [one.encoder for one, _ in members_of(settings)] if isinstance(settings, NpBtl) else []
    likes = any(isinstance(one, configs.BayesEncoder) and "responses" in one.observations for one in encoders)
    if likes or isinstance(settings, Dpl):
        raise UserError(
            f"{place}: choices among more than two responses, but the model was trained on choices between two; train "
            "it on such choices"
        )


def resolve(config: RewardConfig, dataset: Dataset, quiet: bool = False) -> RewardConfig:
    """The configuration with all settings that depend on the data filled in, as saved in a work directory."""
    config = copy.deepcopy(config)
    fit_sizes(config.train, config.data, dataset, quiet)
    config.model = resolve_model(config.model, dataset, quiet)
    if config.model.learn_texts == "no":
        config.train.factor_steps = 0
    return config


def fit_sizes(train: Any, data: Any, dataset: Dataset, quiet: bool = False) -> None:
    """Limits contexts and targets of training, in place, to the number of rows that users have."""
    rows = dataset.splits["train"].table.chosen.shape[2]
    if isinstance(data, Synthetic):
        return
    for name in ("max_context", "targets"):
        if getattr(train, name) > rows:
            said = "no training user has more than %d rows per pool: config.train.%s=%d"
            (_log.debug if quiet else _log.info)(said, rows, name, rows)
            setattr(train, name, rows)
    if hasattr(train, "min_context"):
        train.min_context = min(train.min_context, train.max_context)


def _unit_scale(dataset: Dataset) -> float:
    """The factor that gives the features of the training texts a total variance of 1."""
    features = np.asarray(dataset.features)[seen_in_training(dataset)].astype(np.float64)
    total = features.var(axis=0).sum()
    return float(f"{total**-0.5:.4g}") if total > 0 else 1.0


def _known_share(dataset: Dataset) -> float:
    """The share of the choices of validation people with both texts in training rows."""
    table = dataset.splits["val"].table
    known = all_of(table, seen_in_training(dataset) | dataset.thresholds)[np.asarray(table.mask)]
    return float(known.mean()) if known.size else 0.0
