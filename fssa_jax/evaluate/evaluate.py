"""Scores of held-out people, whose targets share no text with their context: every series at every k, the same targets
and nested contexts for all, with intervals over users."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fssa_jax.config.reward import EvaluateConfig
from fssa_jax.data.dataset import Dataset, Split, Truth, seen_in_training
from fssa_jax.errors import UserError
from fssa_jax.evaluate.controls import other_owners, scrambled_context, with_contexts_of
from fssa_jax.evaluate.predictor import evaluation_episodes, make_predictor
from fssa_jax.evaluate.scores import Scores
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops import metrics
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.types import Comparisons, Episode, PyTree

_log = logging.getLogger(__name__)

_FEW_GROUPS = 12


@dataclasses.dataclass
class Trained:
    """A model with its variables, and the step that they were saved at."""

    model: RewardModel
    variables: PyTree
    step: int = 0


@dataclasses.dataclass
class Predictor:
    """Anything that predicts choices: a reward model, or the preferences that a policy implies.

    Attributes:
      predict: (episodes, ks) -> log p (k, users, targets) and, of q(z | C) at the largest k, the means and the KL
        divergence to N(0, I) a unit (users, m).
      conditional: whether it reads the context.
      gaussian: whether its latent is a distribution.
    """

    predict: Callable[[Episode, Sequence[int]], tuple[np.ndarray, np.ndarray, np.ndarray]]
    conditional: bool
    gaussian: bool = False


def reward_predictor(trained: Trained, dataset: Dataset, samples: int) -> Predictor:
    """The predictor of a reward model, on the features of a data set."""
    features = jnp.asarray(dataset.features)
    predict = make_predictor(trained.model, samples)
    return Predictor(
        lambda episodes, ks: predict(trained.variables, features, episodes, ks),
        trained.model.latent == "context",
        trained.model.encoder is not None and trained.model.encoder.gaussian,
    )


@dataclasses.dataclass
class Evaluation:
    """report.json as a dictionary, and what the plots need beside it."""

    report: dict[str, Any]
    users: np.ndarray  # rows of the split's table
    latents: np.ndarray  # (users, m) at the largest k
    accuracy_by_user: np.ndarray  # (k, users)


def evaluate(
    main: Predictor,
    split: Split,
    dataset: Dataset,
    settings: EvaluateConfig,
    *,
    population: Predictor | None = None,
    oracle: Predictor | None = None,
    seed: int = 0,
    max_users: int | None = None,
    max_targets: int | None = None,
    control: bool = True,
    scramble: bool = False,
) -> Evaluation:
    """Scores a predictor and everything beside it on the same users, targets and contexts.

    Series, each {k: {"mean", "low", "high"}} with fractions: accuracy, nll, ece, steering; control (accuracy with
    another person's context), population, oracle, bayes (accuracies), and the same with _nll, _ece and _steering for
    each; gain and control_gain (paired differences from the population's accuracy); steering is None where no two
    people judge a pair differently. The oracle is scored on the users whose group has training users. Where there are
    few groups, such as the labels of UltraFeedback, by_group has the accuracies of each: {group: {series: …}}. Where
    only a part of the target rows has both texts unseen in training, those rows are scored apart: accuracy_unseen and
    population_unseen.

    Where the limit is known, steering_gap is S less that of the Bayes limit, paired within people, and
    share_of_bayes_steering their ratio (None where the limit is below one point).

    Args:
      main, population, oracle: what is scored; the last two where there are any.
      split: whose people are scored, `max_users` and `max_targets` of each at most, the first ones.
      dataset: that the split belongs to.
      seed: of contexts, of the control and of the intervals.
      control: score another person's context too.
      scramble: score contexts whose every choice is of a person drawn for it alone (scrambled).

    Raises:
      UserError: the largest k is larger than any user's context.
    """
    ks = tuple(sorted(set(settings.k)))
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
    score = Scores(ks, mask, targets, settings, seed)

    def progress(episodes: list[Episode], name: str):
        return tqdm(episodes, desc=f"evaluate: {name}", unit="draw", leave=False, disable=None)

    scored = (main.predict(e, ks) for e in progress(episodes, "model"))
    own, latents, kl = zip(*scored, strict=True)
    score.add("", np.stack(own))
    if main.conditional and control and len(users) > 1:
        shuffled = [
            with_contexts_of(episodes[i % len(episodes)], _shuffle(seed + i, split, users, settings))
            for i in range(settings.shuffles)
        ]
        log_p = [main.predict(e, ks)[0] for e in progress(shuffled, "control")]
        score.add("control", np.stack(log_p))
    if main.conditional and scramble and len(users) > 1:
        mixed = []
        for i in range(settings.shuffles):
            episode = episodes[i % len(episodes)]
            mixed.append(dataclasses.replace(episode, context=scrambled_context(episode.context, seed + i)))
        score.add("scrambled", np.stack([main.predict(e, ks)[0] for e in progress(mixed, "scrambled")]))
    # A group without training users has no specialist: its users are left out of the oracle's score.
    trained_groups = np.unique(np.asarray(dataset.splits["train"].table.group))
    known = np.isin(np.asarray(split.table.group)[users], trained_groups)
    for name, other, scored in (("population", population, mask), ("oracle", oracle, mask & known[:, None])):
        if other is not None and scored.any():
            log_p, _, _ = other.predict(episodes[0], (0,))
            score.add(name, np.repeat(log_p, len(ks), axis=0)[None], scored)
    if population is not None:
        score.add_gains("population")
    if dataset.truth is not None:
        score.add("bayes", np.stack([bayes_log_p(dataset.truth, e, ks) for e in progress(episodes, "Bayes limit")]))
        score.add_steering_beside("bayes")

    seen = seen_in_training(dataset)
    unseen = mask & ~seen[np.asarray(targets.chosen)] & ~seen[np.asarray(targets.rejected)]
    if 0 < unseen.sum() < mask.sum():
        score.add("unseen", np.stack(own), unseen)
        if population is not None:
            score.add("population_unseen", score.log_p["population"], unseen)

    report: dict[str, Any] = {"k": list(ks), **score.report}
    present = np.unique(np.asarray(split.table.group)[users])
    if 1 < len(present) <= _FEW_GROUPS:
        of_user = np.asarray(split.table.group)[users]
        report["by_group"] = {
            dataset.groups[g]: score.accuracies(("", "population", "oracle"), mask & (of_user == g)[:, None])
            for g in present
        }
    report["users"] = {"scored": len(users), "left_out": left_out, "draws": settings.draws}
    if oracle is not None and not known.all():
        report["users"]["without_oracle"] = int((~known).sum())
    report["targets"] = {"rows": int(mask.sum()), "unseen": int(unseen.sum())}
    if main.conditional:
        report["latent"] = latent_health(latents[0], kl[0] if main.gaussian else None)
        p = np.exp(own[0])
        report["latent"]["context_effect"] = float(np.abs(p[-1] - p[0])[mask].mean())
    return Evaluation(report, users, latents[0], score.by_user[""])


def eligible_users(split: Split, k: int) -> tuple[np.ndarray, list[str]]:
    """Rows of the users with at least k context choices and a target, and the names of the others."""
    count = np.asarray(split.table.count)
    fit = (count[:, 0] >= k) & (count[:, 1] > 0)
    if not fit.any():
        longest = count[count[:, 1] > 0, 0].max(initial=0)
        raise UserError(
            f"config.evaluate.k: {k} is larger than any context; the longest has {longest} choices. "
            f"Give k up to {longest}, or more rows a user"
        )
    return np.flatnonzero(fit), [split.users[i] for i in np.flatnonzero(~fit)]


def first_users(split: Split, users: np.ndarray, number: int | None) -> np.ndarray:
    """At most `number` of the users, the first ones; where there are few groups, the same ranks of each of them."""
    if number is None or len(users) <= number:
        return users
    group = np.asarray(split.table.group)[users]
    if len(np.unique(group)) > _FEW_GROUPS:
        return users[:number]
    rank = np.zeros(len(users), int)
    for g in np.unique(group):
        rank[group == g] = np.arange((group == g).sum())
    return np.sort(users[np.argsort(rank, kind="stable")[:number]])


def latent_health(mean: np.ndarray, kl: np.ndarray | None) -> dict[str, float | int]:
    """Signs of posterior collapse: variance of z across users, active units, KL to N(0, I).

    `kl` (users, m) is None for a latent without width.

    A unit is active if the variance of its posterior mean across users is above .01 (arXiv 1509.00519).
    """
    variance = mean.var(axis=0)
    health: dict[str, float | int] = {
        "units": mean.shape[1],
        "active_units": int((variance > 0.01).sum()),
        "variance": float(variance.sum()),
    }
    if kl is not None:
        health["kl"] = float(kl.sum(axis=-1).mean())
    return health


def collapse_warnings(health: dict[str, float | int], moved: float | None) -> list[str]:
    """What is wrong with the latent, by name.

    `moved` is the mean change of a probability by the context; None where only one k was looked at.
    """
    warnings = []
    if health["active_units"] == 0:
        kl = f", KL {health['kl']:.3g}" if "kl" in health else ""
        warnings.append(
            f"latent collapse: 0 of {health['units']} units are active across users{kl}; "
            "lower config.objective.kl_weight or raise the learning rate"
        )
    if moved is not None and moved < 1e-3:
        warnings.append(
            f"context ignored: a full context changes a probability by {moved:.1g} on average; "
            "train longer, or check that users differ"
        )
    return warnings


def limit_warnings(report: dict[str, Any]) -> list[str]:
    """Where a model steers better than anybody can who sees what it should see: something leaks."""
    return [
        f"S is {100 * cell['mean']:.1f} points above that of the Bayes limit at k = {k}, more than its interval: "
        "something of the targets reaches the model; check that contexts and targets share no text"
        for k, cell in (report.get("steering_gap") or {}).items()
        if cell["low"] > 0
    ]


def bayes_log_p(truth: Truth, episode: Episode, ks: tuple[int, ...]) -> np.ndarray:
    """log p (k, users, targets) of the Bayes predictor that knows all possible people."""
    rewards = jnp.asarray(truth.rewards)
    log_prior = jnp.asarray(truth.log_prior)

    @jax.jit
    def batch(episode: Episode):
        def delta(c: Comparisons):
            return rewards[c.chosen] - rewards[c.rejected]

        context, targets = delta(episode.context), delta(episode.targets)

        def at(k):
            mask = truncate_context(episode, k).context.mask
            return metrics.bayes_log_predictive(context, mask, targets, log_prior)

        return jax.lax.map(at, jnp.asarray(ks))

    users = episode.user.shape[0]
    parts = [np.asarray(batch(jax.tree.map(lambda x, i=i: x[i : i + 200], episode))) for i in range(0, users, 200)]
    return np.concatenate(parts, axis=1)


def _shuffle(seed: int, split: Split, users: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    """Whose context each user gets: never the user's own, where there is another to take."""
    group = np.asarray(split.table.group)[users] if settings.shuffle_within_group else np.zeros(len(users), int)
    return other_owners(np.random.default_rng(seed), group)


def _first_targets(episode: Episode, number: int) -> Episode:
    targets = jax.tree.map(lambda x: x[:, :number], episode.targets)
    return Episode(episode.context, targets, episode.user, episode.group)
