"""Which pictures an evaluation has, and what they show of it; `plots` draws them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.data.benchmarks import synthetic
from fssa_jax.data.dataset import Split
from fssa_jax.evaluate.evaluate import Evaluation, Trained
from fssa_jax.evaluate.predictor import evaluation_episodes, make_predictor
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.report import plots

_USERS_SHOWN = 4


def draw(work: Workdir, main: Trained, people: Split, result: Evaluation, target: Path) -> list[tuple[str, str]]:
    """Writes the pictures; returns (file name, caption) of each."""
    pictures = [
        (
            "accuracy.png",
            "Accuracy on a person's other choices against the number of choices seen. Bands: 95 % over users.",
        )
    ]
    plots.accuracy_curves(result.report, target / "accuracy.png")
    if main.model.latent != "context":
        return pictures
    # Users at even distances in the order of their accuracy: neither the best nor the worst alone.
    order = np.argsort(result.accuracy_by_user[-1], kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(_USERS_SHOWN, len(order))).round().astype(int)]
    rows = result.users[shown]
    names = [people.users[i] for i in rows]
    table = jax.tree.map(jnp.asarray, people.table)
    ks = result.report["k"]
    episodes = evaluation_episodes(work.config.seed, 0, table, jnp.asarray(rows), max_context=max(ks))
    if work.config.data.source.startswith("synthetic"):
        _synthetic_curves(main, episodes, work, names, ks, target / "curves.png")
        caption = "Inferred reward curves of four users as the context grows, and their true reward."
    else:
        steps = tuple(range(max(ks) + 1))
        features = jnp.asarray(work.dataset.features)
        log_p, _, _ = make_predictor(main.model, work.config.evaluate.samples)(
            main.variables, features, episodes, steps
        )
        real = np.asarray(episodes.targets.mask)
        curves = [np.exp(log_p[:, i][:, real[i]]) for i in range(len(rows))]
        plots.reward_traces(names, curves, target / "curves.png")
        caption = "Four users, from the least to the most accurately predicted: what the model thinks of each of their later choices as it reads more of their context."  # noqa: E501
    pictures.append(("curves.png", caption))
    colour, labels = _latent_colours(work, people, result.users)
    plots.latents(result.latents, colour, labels, target / "latents.png")
    pictures.append(("latents.png", "Latents z of the users after the longest context, on two principal components."))
    return pictures


def _synthetic_curves(main, episodes, work: Workdir, names, ks, path: Path) -> None:
    y = np.linspace(0, 1, 201, dtype=np.float32)

    def apply(module, context):
        z = module.infer(context, jnp.asarray(work.dataset.features)).mean
        features = jnp.broadcast_to(jnp.asarray(y)[None, :, None], (z.shape[0], len(y), 1))
        return module.rewards(features, z[None])[0, :, :, 0]

    curves = [
        np.asarray(main.model.apply(main.variables, truncate_context(episodes, k).context, method=apply)) for k in ks
    ]
    inferred = {name: np.stack([curve[i] for curve in curves]) for i, name in enumerate(names)}
    kinds = np.asarray(episodes.group)
    true = {name: np.asarray(synthetic.reward(jnp.asarray(y), int(kinds[i]))) for i, name in enumerate(names)}
    plots.reward_curves(y, inferred, true, ks, path)


def _latent_colours(work: Workdir, people: Split, users: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """By group where there are few; by what the people truly want where that is known; else the largest groups."""
    group = np.asarray(people.table.group)[users]
    names = work.dataset.groups
    if len(names) > 12 and work.dataset.truth is not None:
        wanted = work.dataset.truth.rewards[:, group].T
        centred = wanted - wanted.mean(0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        return centred @ direction, None
    largest = np.argsort(-np.bincount(group, minlength=len(names)), kind="stable")[:9]
    place = {int(g): i for i, g in enumerate(largest)}
    other = len(largest)
    colour = np.array([place.get(int(g), other) for g in group])
    labels = [names[g] or "all" for g in largest] + (["other groups"] if (colour == other).any() else [])
    return colour, labels
