"""Draws the pictures of the report."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fssa_jax.errors import printable

_COLOURS = {
    "accuracy": "#2757c4",
    "bayes": "#111111",
    "specialist": "#2a9d5c",
    "population": "#c4762b",
    "control": "#b3b3b3",
}
_LABELS = {
    "accuracy": "this model",
    "bayes": "Bayes limit",
    "specialist": "specialists (given the group)",
    "population": "population model",
    "control": "another person's context",
}

plt.rcParams.update(
    {
        "text.parse_math": False,  # names of people and groups are no formulae
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "axes.axisbelow": True,
        "figure.dpi": 130,
        "savefig.bbox": "tight",
    }
)


def legend_name(name: str) -> str:
    """A name for a legend, which leaves out names that begin with an underscore."""
    shown = printable(name[:40])
    return f" {shown}" if shown.startswith("_") else shown


def accuracy_curves(report: dict[str, Any], path: Path) -> None:
    """Accuracy versus k, with every baseline in the report."""
    ks = report["k"]
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for name in ("bayes", "specialist", "population", "control", "accuracy"):
        if name not in report:
            continue
        mean, low, high = (np.array([100 * report[name][str(k)][part] for k in ks]) for part in ("mean", "low", "high"))
        style = "--" if name in ("bayes", "specialist") else "-"
        main = name == "accuracy"
        axes.plot(
            ks,
            mean,
            style,
            color=_COLOURS[name],
            label=_LABELS[name],
            marker="o" if main else None,
            linewidth=2.4 if main else 1.5,
        )
        axes.fill_between(ks, low, high, color=_COLOURS[name], alpha=0.12, linewidth=0)
    axes.set(xlabel="choices of the person in the context, k", ylabel="accuracy on the person's other choices, %")
    axes.set_xticks(ks)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def steering_curves(report: dict[str, Any], path: Path) -> None:
    """The steering score S versus k, next to the Bayes limit, the specialists and another person's context."""
    series = (
        ("bayes_steering", "Bayes limit", "#111111", "--"),
        ("specialist_steering", "specialists", "#2a9d5c", "--"),
        ("control_steering", "another person's context", "#b3b3b3", "-"),
        ("in_context_steering", "choices in the prompt", "#c4762b", "-"),
        ("steering", "this model", "#2757c4", "-"),
    )
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for name, label, colour, style in series:
        if not report.get(name):
            continue
        ks = [int(k) for k in report[name]]
        mean, low, high = (
            np.array([100 * cell[part] for cell in report[name].values()]) for part in ("mean", "low", "high")
        )
        axes.plot(
            ks,
            mean,
            style,
            color=colour,
            label=label,
            linewidth=2.4 if name == "steering" else 1.5,
            marker="o" if name == "steering" else None,
        )
        axes.fill_between(ks, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set(xlabel="choices of the person, k", ylabel="steering score S")
    # Outside of the axes, which are full of curves.
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
    plt.close(figure)


def movement_bars(ks: list[str], by_attribute: dict[str, list[float]], path: Path) -> None:
    """P(attribute | people who want it) − P(attribute | people who do not), in points, as bars per attribute."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    shades = plt.get_cmap("Blues")(np.linspace(0.3, 1, len(ks)))
    width = 0.8 / max(len(ks), 1)
    for i, (k, shade) in enumerate(zip(ks, shades, strict=True)):
        values = [100 * moved[i] for moved in by_attribute.values()]
        axes.bar(np.arange(len(values)) + (i - (len(ks) - 1) / 2) * width, values, width, color=shade, label=f"k = {k}")
    axes.set_xticks(range(len(by_attribute)), list(by_attribute))
    axes.set(ylabel="movement, points")
    axes.legend(frameon=False, fontsize=8, ncol=len(ks))
    figure.savefig(path)
    plt.close(figure)


def continuum(t: list[float], values: list[float], path: Path) -> None:
    """The reward, for the first person, of responses written for mixtures of two people."""
    figure, axes = plt.subplots(figsize=(6.4, 2.6))
    axes.plot(t, values, "-o", color="#2757c4", linewidth=2.4)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set(xlabel="from person A (0) to person B (1), who wants the opposite", ylabel="reward for A, nats")
    axes.set_xticks(t)
    figure.savefig(path)
    plt.close(figure)


def reward_curves(
    y: np.ndarray, inferred: dict[str, np.ndarray], true: dict[str, np.ndarray] | None, ks: list[int], path: Path
) -> None:
    """Rewards over a one-dimensional response, one panel per user, one line per context size."""
    figure, panels = plt.subplots(1, len(inferred), figsize=(3.2 * len(inferred), 3), sharey=True, squeeze=False)
    shades = plt.get_cmap("Blues")(np.linspace(0.35, 1, len(ks)))
    for axes, (name, curves) in zip(panels[0], inferred.items(), strict=True):
        for curve, k, shade in zip(curves, ks, shades, strict=True):
            axes.plot(y, _standardise(curve), color=shade, label=f"k = {k}")
        if true is not None:
            axes.plot(y, _standardise(true[name]), "--", color="#111111", linewidth=1, label="true")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("response y")
    panels[0][0].set_ylabel("inferred reward (standardised)")
    panels[0][-1].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def reward_traces(names: list[str], probabilities: list[np.ndarray], path: Path) -> None:
    """The predicted probability of each later choice of some users, as the context grows."""
    figure, panels = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), sharey=True, squeeze=False)
    for axes, name, p in zip(panels[0], names, probabilities, strict=True):
        axes.plot(np.arange(len(p)), 100 * p, color="#2757c4", alpha=0.25, linewidth=1)
        axes.plot(np.arange(len(p)), 100 * p.mean(1), color="#2757c4", linewidth=2.4)
        axes.axhline(50, color="#999999", linewidth=0.8)
        axes.set_title(printable(name if len(name) <= 34 else f"{name[:33]}…"), fontsize=8)
        axes.set_xlabel("choices in the context, k")
    panels[0][0].set_ylabel("probability of the person's\nother choices, % (bold: mean)")
    figure.savefig(path)
    plt.close(figure)


def latents(z: np.ndarray, colour: np.ndarray, labels: list[str] | None, path: Path) -> None:
    """Latents of users on their first two principal components.

    Args:
      z: (users, m).
      colour: (users,) indices of `labels`, or values for a colour scale if `labels` is None.
    """
    centred = z - z.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    xy = centred @ directions[:2].T
    if xy.shape[1] == 1:
        xy = np.column_stack([xy, np.zeros(len(xy))])
    figure, axes = plt.subplots(figsize=(5.2, 4.2))
    if labels is None:
        points = axes.scatter(*xy.T, c=colour, s=10, cmap="coolwarm", alpha=0.8, linewidths=0)
        figure.colorbar(points, ax=axes, label="true reward weights, first component")
    else:
        for i, label in enumerate(labels):
            rows = colour == i
            axes.scatter(*xy[rows].T, s=10, alpha=0.7, linewidths=0, label=legend_name(label))
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xlabel="first principal component of z", ylabel="second")
    figure.savefig(path)
    plt.close(figure)


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(float(values.std()), 1e-9)
