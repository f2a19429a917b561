"""The evaluation of a work directory: report.json, pictures, and one report.html that opens by itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from fssa_jax.evaluate.evaluate import Trained, collapse_warnings, evaluate, limit_warnings, reward_predictor
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import whole_directory
from fssa_jax.models.rewards import RewardModel
from fssa_jax.report.example import write_example
from fssa_jax.report.html import render, series_of
from fssa_jax.report.pictures import draw

_FEW_USERS = 10


def evaluate_workdir(workdir: Path, data: str = "", split: str = "test", ks: tuple[int, ...] = ()) -> dict[str, Any]:
    """Evaluates a trained work directory and writes its report/ whole. Returns report.json.

    Args:
      data: rows of other people, every one of whom is scored who was not trained on; empty for the split of the
        workdir's data.
      ks: context sizes; the configuration's if empty.

    Raises:
      UserError: no or damaged work directory, bad rows, k larger than any context.
    """
    work = Workdir.open(workdir)
    main = work.trained()
    assert main is not None
    population = work.trained("population") or _itself_if_population(main)
    oracle = None if data else work.trained("oracle")
    work, people = work.with_people(data) if data else (work, work.dataset.splits[split])
    settings = dataclasses.replace(work.config.evaluate, k=ks or work.config.evaluate.k)
    predictors = [
        None if trained is None else reward_predictor(trained, work.dataset, settings.samples)
        for trained in (main, population, oracle)
    ]
    assert predictors[0] is not None
    result = evaluate(
        predictors[0],
        people,
        work.dataset,
        settings,
        population=predictors[1],
        oracle=predictors[2],
        seed=work.config.seed,
    )
    result.report["data"] = data or f"{split} split"
    result.report["config"] = work.config.name
    result.report["seed"] = work.config.seed
    result.report["run"] = work.run
    health = result.report.get("latent", {})
    several = len(result.report["k"]) > 1
    scored = result.report["users"]["scored"]
    result.report["step"] = main.step
    result.report["warnings"] = work.unfinished()
    result.report["warnings"] += few_people(scored) + limit_warnings(result.report)
    unknown = unknown_texts(result.report, main.model)
    result.report["warnings"] += unknown
    if health and scored > 1 and not unknown:
        result.report["warnings"] += collapse_warnings(health, health["context_effect"] if several else None)
    with whole_directory(report_directory(workdir, data, split)) as target:
        (target / "report.json").write_text(json.dumps(result.report, indent=1), encoding="utf-8")
        pictures = draw(work, main, people, result, target)
        ranking = write_example(work, people, result, target) if not data else ""
        page = render(work.config, result.report, pictures, target, ranking)
        (target / "report.html").write_text(page, encoding="utf-8")
    return result.report


def few_people(scored: int) -> list[str]:
    """A warning where the figures are of too few people."""
    few = f"only {scored} people are scored: the figures say little; give more people"
    return [few] if scored < _FEW_USERS else []


def unknown_texts(report: dict[str, Any], model: RewardModel) -> list[str]:
    """A warning where a model that knows no texts but those of its training is asked about others."""
    unknown = report["targets"]["unseen"] / max(report["targets"]["rows"], 1)
    if not model.learnt_texts or model.target != "none" or unknown <= 0.5:
        return []
    return [
        f"{unknown:.0%} of the choices are about texts that were never judged in training, and this model knows no "
        "others; train with --config.model.learn_texts=no"
    ]


def report_directory(workdir: Path, data: str = "", split: str = "test") -> Path:
    """report/ for the test users; report-val/ and report-NAME/ for validation users and other people's rows."""
    name = Path(data).name.split(".")[0] if data else "" if split == "test" else split
    return workdir / (f"report-{name}" if name else "report")


def format_table(report: dict[str, Any]) -> str:
    """The series as text, in per cent, one column a k."""
    ks = [str(k) for k in report["k"]]
    lines = [f"{'':34s}" + "".join(f"{'k = ' + k:>16s}" for k in ks)]
    rows = [(name, label) for name, label in series_of(report).items() if report.get(name)]
    plain = (
        "steering",
        "bayes_steering",
        "control_steering",
        "scrambled_steering",
        "in_context_steering",
        "in_context_own_steering",
        "accuracy_unseen",
        "population_unseen",
    )
    rows += [(name, name.replace("_", " ")) for name in plain if report.get(name)]
    rows += [("steering_gap", "S less that of Bayes")] if report.get("steering_gap") else []
    rows += [("gain", "gain over population")] if report.get("gain") else []
    for name, label in rows:
        cells = (f"{100 * report[name][k]['mean']:.1f} ±{_half_width(report[name][k]):.1f}" for k in ks)
        lines.append(f"{label + ', %':34s}" + "".join(f"{cell:>16s}" for cell in cells))
    for group, series in report.get("by_group", {}).items():
        for name, cells in series.items():
            label = group if name == "accuracy" else f"{group}, {name}"
            values = (f"{100 * cells[k]['mean']:.1f} ±{_half_width(cells[k]):.1f}" for k in ks)
            lines.append(f"{label + ', %':34s}" + "".join(f"{cell:>16s}" for cell in values))
    for name, label in (("nll", "NLL, nats"), ("bayes_nll", "Bayes NLL"), ("ece", "ECE")):
        if report.get(name):
            lines.append(f"{label:34s}" + "".join(f"{report[name][k]['mean']:16.3f}" for k in ks))
    users, targets = report["users"], report["targets"]
    lines.append(f"{users['scored']} people, {targets['rows']} choices; checkpoint of step {report['step']}")
    return "\n".join(lines)


def _half_width(cell: dict[str, float]) -> float:
    return 50 * (cell["high"] - cell["low"])


def _itself_if_population(main: Trained) -> Trained | None:
    """A model without latent is its own population model."""
    return main if main.model.latent == "none" else None
