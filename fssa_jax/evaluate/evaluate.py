"""Scores of held-out people: every series at every k, with bootstrap intervals over users.

The targets share no text with the context, are the same for all series and all k, and the contexts are nested.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax import config as configs
from fssa_jax.data.dataset import Dataset, Split, seen_in_training
from fssa_jax.evaluate.bayes import bayes_predictions
from fssa_jax.evaluate.controls import other_owners, scrambled_context, with_contexts_of
from fssa_jax.evaluate.episodes import FEW_GROUPS, eligible_users, evaluation_episodes, first_users
from fssa_jax.evaluate.latent import context_effect, latent_health
from fssa_jax.evaluate.scores import Scores
from fssa_jax.ops.choices import per_choice, real_responses, responses_of
from fssa_jax.progress import each
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.types import Episode


@dataclasses.dataclass
class Evaluation:
    """The content of report.json, and the data for the pictures."""

    report: dict[str, Any]
    users: np.ndarray  # rows of the split's table
    latents: np.ndarray  # (users, m) at the largest k
    accuracy_by_user: np.ndarray  # (k, users)


def evaluate(
    main: Predictor,
    split: Split,
    dataset: Dataset,
    settings: configs.Evaluation,
    *,
    others: Mapping[str, Predictor] | None = None,
    seed: int = 0,
    max_users: int | None = None,
    max_targets: int | None = None,
    control: bool = True,
    seen: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Evaluation:
    """Scores a predictor and its baselines on the same users, targets and contexts.

    Each series is {k: {"mean", "low", "high"}}, in fractions:

    * accuracy, nll, ece, steering of `main`; steering is None if no two people judge a pair differently.
    * control (accuracy with another person's context), scrambled (every choice from another person), population,
      specialist, bayes: accuracies, and each also with _nll, _ece and _steering.
    * ece_by_chance: what ECE would be if the model were calibrated, {"mean", "high"}. nll_rise: between which k NLL
      grows most.
    * gain and control_gain: paired differences of accuracy from the population model. choices_gain and
      control_choices_gain: from `main` itself without choices, if 0 is among the k. last_gain: between the two largest
      k, one cell.
    Steering is of choices between two texts, and None for choices of one among more.

    * accuracy_unseen and population_unseen: accuracies on the target rows with both texts unseen in training, if these
      are only a part of all rows.
    * steering_gap: S minus the S of the Bayes limit, paired within people, and share_of_bayes_steering, their ratio
      (None if the limit is below one point). Only if the limit is known.

    Specialists are scored on the users whose group has training users. If there are few groups, such as the labels of
    UltraFeedback, by_group has the accuracies per group: {group: {series: …}}.

    Args:
      main: the predictor to score.
      split: the people to score; the first `max_users` people, and the first `max_targets` targets of each.
      dataset: the data set of the split.
      settings: settings of the evaluation.
      others: "population" and "specialist", if available.
      seed: of contexts, of the controls and of the intervals.
      control: also score the uninformative control contexts.
      seen: (people, texts) ↦ whether the model that predicts a person was trained on a text; both are indices. By
        default the texts that the training people of the data set judge.

    Raises:
      UserError: the largest k is larger than any user's context.
    """
    ks = tuple(sorted(set(settings.k)))
    others = others or {}
    table = jax.tree.map(jnp.asarray, split.table)
    users, left_out = eligible_users(split, max(ks))
    users = first_users(split, users, max_users)
    episodes = [
        evaluation_episodes(seed, draw, table, jnp.asarray(users), max_context=max(ks))
        for draw in range(settings.draws)
    ]
    if max_targets is not None:
        episodes = [_first_targets(episode, max_targets) for episode in episodes]
    targets = episodes[0].targets
    mask = np.asarray(targets.mask)
    alone = dataset.thresholds[np.asarray(targets.chosen)] | dataset.thresholds[np.asarray(targets.rejected)]
    score = Scores(ks, mask, targets, settings, seed, ~alone)
    own = [main.predict(e, ks) for e in _progress(episodes, "model")]
    score.add("", own)
    if main.reads and control and len(users) > 1:
        for name, made in _controls(episodes, split, users, settings, seed).items():
            score.add(name, [main.predict(e, ks) for e in _progress(made, name)])
    # A group without training users has no specialist; its users are left out of the specialists' score.
    trained_groups = np.unique(np.asarray(dataset.splits["train"].table.group))
    known = np.isin(np.asarray(split.table.group)[users], trained_groups)
    for name, other in others.items():
        scored = mask & known[:, None] if name == "specialist" else mask
        if scored.any():
            score.add(name, [other.predict(episodes[0], (0,)).repeated(len(ks))], scored)
    if "population" in others:
        score.add_gains("population")
    if main.reads and len(ks) > 1:
        score.add_last_gain()
        score.add_nll_rise()
        if 0 in ks:
            score.add_choices_gains()
    score.add_ece_by_chance(seed)
    if dataset.truth is not None:
        score.add("bayes", [bayes_predictions(dataset.truth, e, ks) for e in _progress(episodes, "Bayes limit")])
        score.add_steering_gap("bayes")

    texts = np.maximum(per_choice(responses_of(targets), targets), 0)
    if seen is None:
        met = seen_in_training(dataset)[texts]
    else:
        met = seen(np.broadcast_to(users[:, None, None], texts.shape), texts)
    met = met & np.asarray(real_responses(targets))
    unseen = mask & ~met.any(-1)
    if 0 < unseen.sum() < mask.sum():
        score.add("unseen", score.predictions[""], unseen)
        if "population" in others:
            score.add("population_unseen", score.predictions["population"], unseen)

    report: dict[str, Any] = {"k": list(ks), **score.report}
    of_user = np.asarray(split.table.group)[users]
    present = np.unique(of_user)
    if 1 < len(present) <= FEW_GROUPS:
        report["by_group"] = {
            dataset.groups[g]: score.accuracies(("", "population", "specialist"), mask & (of_user == g)[:, None])
            for g in present
        }
    report["users"] = {"scored": len(users), "left_out": left_out, "draws": settings.draws}
    if "specialist" in others and not known.all():
        report["users"]["without_specialist"] = int((~known).sum())
    report["targets"] = {"rows": int(mask.sum()), "unseen": int(unseen.sum())}
    if (mask & alone).any():
        report["targets"]["thumbs_and_ratings"] = int((mask & alone).sum())
    if main.reads:
        report["latent"] = latent_health(own[0].mean[-1], own[0].kl()[-1] if main.gaussian else None)
        report["latent"]["context_effect"] = context_effect(own[0].log_p, mask)
    return Evaluation(report, users, own[0].mean[-1], score.by_user[""])


def _progress(episodes: list[Episode], name: str) -> Iterable[Episode]:
    return each(episodes, f"evaluate: {name}", "draws")


def _controls(
    episodes: list[Episode], split: Split, users: np.ndarray, settings: configs.Evaluation, seed: int
) -> dict[str, list[Episode]]:
    """Episodes with uninformative contexts: another person's, and choices of many people mixed."""
    group = np.asarray(split.table.group)[users] if settings.shuffle_within_group else np.zeros(len(users), int)
    shuffled, mixed = [], []
    for i in range(settings.shuffles):
        episode = episodes[i % len(episodes)]
        # The owner of each user's new context: never the user, unless there is nobody else.
        shuffled.append(with_contexts_of(episode, other_owners(np.random.default_rng(seed + i), group)))
        mixed.append(dataclasses.replace(episode, context=scrambled_context(episode.context, seed + i)))
    return {"control": shuffled, "scrambled": mixed}


def _first_targets(episode: Episode, number: int) -> Episode:
    targets = jax.tree.map(lambda x: x[:, :number], episode.targets)
    return Episode(episode.context, targets, episode.user, episode.group)
