"""Selects the pictures of a report and their captions; `plots` draws them."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fssa_jax.config import Synthetic
from fssa_jax.data.benchmarks import synthetic
from fssa_jax.data.dataset import Split
from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.evaluate.evaluate import Evaluation
from fssa_jax.report import plots
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.task import Task
from fssa_jax.types import Episode, PyTree

_USERS_SHOWN = 4

Pictures = list[tuple[str, str]]
"""(file name, caption) of each."""


def draw_choices(task: Task, main: Predictor, people: Split, result: Evaluation, target: Path) -> Pictures:
    """Accuracy and steering versus k, and latents, for every kind of model."""
    report = result.report
    pictures: Pictures = []
    if report.get("steering"):
        plots.steering_curves(report, target / "steering.png")
        caption = "S(k) on pairs that people disagree about: 0 ignores the person, 100 steers perfectly."
        pictures.append(("steering.png", caption))
    plots.accuracy_curves(report, target / "accuracy.png")
    caption = "Accuracy on a person's other choices versus the number of choices read. Bands: 95 % over users."
    pictures.append(("accuracy.png", caption))
    if main.reads:
        colour, labels = _latent_colours(task, people, result.users)
        plots.latents(result.latents, colour, labels, target / "latents.png")
        caption = "Latents z of the users after the longest context, on two principal components."
        pictures.append(("latents.png", caption))
    return pictures


def draw_reward(
    task: RewardTask, main: Predictor, variables: PyTree, people: Split, result: Evaluation, target: Path
) -> Pictures:
    """A reward model's predictions for some users as it reads more of their context."""
    if not main.reads:
        return []
    # Users evenly spaced in the order of their accuracy, from worst to best.
    order = np.argsort(result.accuracy_by_user[-1], kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(_USERS_SHOWN, len(order))).round().astype(int)]
    rows, ks = result.users[shown], result.report["k"]
    names = [people.users[i] for i in rows]
    episodes = episodes_of(people, rows, task.config.seed, max(ks))
    if isinstance(task.config.data, Synthetic):
        _synthetic_curves(task, main, variables, episodes, names, ks, target / "curves.png")
        return [("curves.png", "Inferred reward curves of four users as the context grows, and their true reward.")]
    log_p = main.predict(episodes, tuple(range(max(ks) + 1))).log_p
    real = np.asarray(episodes.targets.mask)
    curves = [np.exp(log_p[:, i][:, real[i]]) for i in range(len(rows))]
    plots.reward_traces(names, curves, target / "curves.png")
    caption = "Four users, from the least to the most accurately predicted: the probability of each of their later "
    return [("curves.png", caption + "choices as the model reads more of their context.")]


def draw_policy(report: dict[str, Any], target: Path) -> Pictures:
    """The movement of a policy's responses, and its responses for mixtures of two people."""
    pictures: Pictures = []
    policy = report.get("generation", {}).get("policy", {})
    moved = {k: out["movement_by_attribute"] for k, out in policy.items() if out.get("movement") is not None}
    if moved:
        names = [n for n in next(iter(moved.values())) if all(by[n] is not None for by in moved.values())]
        bars = {name: [by[name] for by in moved.values()] for name in names}
        plots.movement_bars(list(moved), bars, target / "movement.png")
        caption = "Movement: how much more often an attribute is written for people who want it."
        pictures.append(("movement.png", caption))
    blend = report.get("generation", {}).get("blend", {})
    if blend.get("towards_first"):
        plots.continuum(blend["t"], blend["towards_first"], target / "continuum.png")
        pictures.append(("continuum.png", "Between two people of opposite weights: reward for the first."))
    return pictures


def _synthetic_curves(
    task: RewardTask, main: Predictor, variables: PyTree, episodes: Episode, names: list[str], ks: list[int], path: Path
) -> None:
    y = np.linspace(0, 1, 201, dtype=np.float32)

    def curve(z: np.ndarray) -> np.ndarray:
        features = jnp.broadcast_to(jnp.asarray(y)[None, :, None], (len(z), len(y), 1))
        rewards: Any = task.model().apply(variables, features, jnp.asarray(z)[None], method="rewards")
        return np.asarray(rewards)[0, :, :, 0]

    curves = [curve(main.latents(episodes, k)) for k in ks]
    inferred = {name: np.stack([of_k[i] for of_k in curves]) for i, name in enumerate(names)}
    kinds = np.asarray(episodes.group)
    true = {name: np.asarray(synthetic.reward(jnp.asarray(y), int(kinds[i]))) for i, name in enumerate(names)}
    plots.reward_curves(y, inferred, true, ks, path)


def _latent_colours(task: Task, people: Split, users: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """Colours by group if there are few groups; by true weights if they are known; else by the largest groups."""
    group = np.asarray(people.table.group)[users]
    names = task.dataset.groups
    if len(names) > 12 and task.dataset.truth is not None:
        wanted = task.dataset.truth.rewards[:, group].T
        centred = wanted - wanted.mean(0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        return centred @ direction, None
    largest = np.argsort(-np.bincount(group, minlength=len(names)), kind="stable")[:9]
    place = {int(g): i for i, g in enumerate(largest)}
    other = len(largest)
    colour = np.array([place.get(int(g), other) for g in group])
    labels = [names[g] or "all" for g in largest] + (["other groups"] if (colour == other).any() else [])
    return colour, labels
