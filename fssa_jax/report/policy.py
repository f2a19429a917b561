"""The report of a policy: report.json, pictures, and one report.html that opens by itself."""

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError
from fssa_jax.evaluate.evaluate import collapse_warnings, limit_warnings
from fssa_jax.evaluate.policy import PolicyEvaluation, evaluate_policy
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.trained_policy import trained_policies
from fssa_jax.files import whole_directory
from fssa_jax.report import plots
from fssa_jax.report.html import render
from fssa_jax.report.reward import few_people, report_directory, unknown_texts

_SIDE_BY_SIDE = 4
_COUNTS = 0.5
_SURELY = 0.02  # S of a control below it is nobody's concern
_OF_HALF_WIDTH = 1.5  # of a 95 % interval, about three standard errors: there are two controls at every k


def evaluate_workdir(
    workdir: Path, data: str = "", split: str = "test", ks: tuple[int, ...] = (), base: str = ""
) -> dict[str, Any]:
    """Evaluates the work directory of a policy and writes its report whole. Returns report.json.

    Args:
      data: rows of other people, every one of whom is scored who was not trained on; empty for the split of the
        workdir's data.
      ks: context sizes; the configuration's if empty.
      base: where the language model is now, if that has moved.

    Raises:
      UserError: no or damaged work directory, a base without a policy, bad rows, k larger than any context.
    """
    work = PolicyWorkdir.open(workdir, base)
    if work.config.is_sft:
        raise UserError(f"{workdir}: holds a language model, not a policy; its checkpoint is {workdir / 'model'}")
    settings = dataclasses.replace(work.config.evaluate, k=ks or work.config.evaluate.k)
    policies = trained_policies(work)
    if data:  # a specialist is of a group; other people's groups may be others
        policies.pop("oracle", None)
    work, people = work.with_people(data) if data else (work, work.dataset.splits[split])
    if data:
        settings.users = len(people.users)
    result = evaluate_policy(work, people, settings, policies)
    report = result.report
    run = json.loads((workdir / "run.json").read_text()) if (workdir / "run.json").is_file() else {}
    report |= {
        "data": data or f"{split} split",
        "config": work.config.name,
        "seed": work.config.seed,
        "run": run,
        "warnings": work.unfinished(),
    }
    report["warnings"] += steering_warnings(report) + limit_warnings(report)
    report["warnings"] += few_people(report["users"]["scored"])
    health = report.get("latent", {})
    unknown = unknown_texts(report, work.reward) if health else []
    report["warnings"] += unknown
    if health and report["users"]["scored"] > 1 and not unknown:
        report["warnings"] += collapse_warnings(health, health["context_effect"] if len(report["k"]) > 1 else None)
    with whole_directory(report_directory(workdir, data, split)) as target:
        (target / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        (target / "responses.json").write_text(
            json.dumps(result.written, ensure_ascii=False, indent=1), encoding="utf-8"
        )
        for name, person in zip(("person_a", "person_b"), result.written.get("opposed", []), strict=False):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in person["choices"])
            (target / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        pictures = _draw(result, target)
        (target / "report.html").write_text(
            render(work.config, report, pictures, target, _written(result)), encoding="utf-8"
        )
    return report


def _draw(result: PolicyEvaluation, target: Path) -> list[tuple[str, str]]:
    report = result.report
    pictures = []
    if report.get("steering"):
        plots.steering_curves(report, target / "steering.png")
        caption = "S(k) on pairs that people disagree about: 0 ignores the person, 100 steers perfectly."
        pictures.append(("steering.png", caption))
    plots.accuracy_curves(report, target / "accuracy.png")
    pictures.append(("accuracy.png", "Implicit accuracy on held-out choices against the number of choices read."))
    policy = report.get("generation", {}).get("policy", {})
    moved = {k: out["movement_by_attribute"] for k, out in policy.items() if out.get("movement") is not None}
    if moved:
        names = [n for n in next(iter(moved.values())) if all(by[n] is not None for by in moved.values())]
        bars = {name: [by[name] for by in moved.values()] for name in names}
        plots.movement_bars(list(moved), bars, target / "movement.png")
        caption = "What is written moves: how much more often an attribute is written for people who want it."
        pictures.append(("movement.png", caption))
    blend = report.get("generation", {}).get("blend", {})
    if blend.get("towards_first"):
        plots.continuum(blend["t"], blend["towards_first"], target / "continuum.png")
        pictures.append(("continuum.png", "Between two people who want the opposite: reward for the first."))
    return pictures


def _written(result: PolicyEvaluation) -> str:
    """Responses side by side, and the continuum, as HTML."""
    written, generation = result.written, result.report.get("generation", {})
    if not written:
        return ""
    names = list(written["texts"])
    shown = [name for name in ("base", "population", "oracle") if name in names] + names[-1:]
    head = "".join(f"<th class=l>{html.escape(name)}</th>" for name in shown)
    prompts = len(written["prompts"]) // max(len(set(written["people"])), 1)
    body = "".join(
        f"<tr><td class=l>{html.escape(written['people'][i])}<br>"
        f"<span class=p>{html.escape(written['prompts'][i])}</span></td>"
        + "".join(f"<td class=l>{html.escape(written['texts'][name][i])}</td>" for name in shown)
        + "</tr>"
        for i in range(0, min(_SIDE_BY_SIDE * prompts, len(written["prompts"])), prompts)
    )
    table = generation_table(result.report)
    cells = [
        "".join(f"<td{' class=l' if i == 0 else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
        for row in table
    ]
    figures = "".join(f"<tr>{row}</tr>" for row in cells)
    number = f"{generation['responses']} responses for {generation['people']} people."
    out = f"<h2>What is written</h2><p class=sub>{number}</p><table>{figures}</table>"
    out += f"<h2>Written for people</h2><table><tr><th class=l>person, prompt</th>{head}</tr>{body}</table>"
    blend = generation.get("blend", {})
    if blend.get("texts"):
        cells = "".join(
            f"<tr><td class=l>{t:g}</td><td class=l>{html.escape(text)}</td></tr>"
            for t, text in zip(blend["t"], blend["texts"], strict=True)
        )
        out += (
            f"<h2>From one person to another</h2><p class=sub>{html.escape(blend['prompt'])}</p>"
            f"<table><tr><th class=l>t</th><th class=l>written for (1 − t) · A + t · B</th></tr>{cells}</table>"
        )
    return out


_COLUMNS = {
    "movement": ("moves by", 100, ".1f", " points"),
    "reward": ("true reward", 1, ".2f", ""),
    "reward_of_specialists": ("of the specialists'", 100, ".0f", " %"),
    "reward_of_known": ("of who knows", 100, ".0f", " %"),
    "bayes_reward_of_known": ("exact posterior of who knows", 100, ".0f", " %"),
    "win_rate_over_base": ("wins over base", 100, ".0f", " %"),
    "win_rate_over_population": ("over population", 100, ".0f", " %"),
    "model_reward": ("reward by the model", 1, ".2f", ""),
    "model_win_rate_over_base": ("wins over base by it", 100, ".0f", " %"),
    "model_win_rate_over_population": ("over population by it", 100, ".0f", " %"),
    "well_formed": ("well-formed", 100, ".1f", " %"),
    "plain_movement": ("at temperature 1: moves by", 100, ".1f", " points"),
    "plain_well_formed": ("well-formed", 100, ".1f", " %"),
    "kl": ("KL", 1, ".2f", ""),
}


def generation_table(report: dict[str, Any]) -> list[list[str]]:
    """What is written, row by row, the names of the columns first; columns without any figure are left out."""
    generation = report.get("generation")
    if not generation:
        return []
    rows = [(name, generation[name]) for name in ("base", "population", "oracle") if name in generation]
    rows += [(f"policy, k = {k}", out) for k, out in generation["policy"].items()]
    columns = {name: how for name, how in _COLUMNS.items() if any(out.get(name) is not None for _, out in rows)}
    table = [["", *(label for label, *_ in columns.values())]]
    for label, out in rows:
        cells = [
            "" if out.get(name) is None else f"{scale * out[name]:{digits}}{unit}"
            for name, (_, scale, digits, unit) in columns.items()
        ]
        table.append([label, *cells])
    return table


def format_generation(report: dict[str, Any]) -> str:
    """What is written, as lines of text."""
    table = generation_table(report)
    if not table:
        return ""
    generation = report["generation"]
    lines = [f"{generation['responses']} responses written for {generation['people']} people:"]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for label, *cells in table:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([label.ljust(widths[0]), *aligned]))
    blend = generation.get("blend", {})
    if blend.get("towards_first"):
        lines.append("reward for A from A to B: " + " → ".join(f"{value:.2f}" for value in blend["towards_first"]))
    return "\n".join(lines)


def steering_warnings(report: dict[str, Any]) -> list[str]:
    """Where contexts that say nothing about a person steer all the same."""
    out = []
    for name, what in (
        ("control_steering", "another person's context"),
        ("scrambled_steering", "choices of many people mixed"),
    ):
        for k, cell in (report.get(name) or {}).items():
            if abs(cell["mean"]) > max(_SURELY, _OF_HALF_WIDTH * (cell["high"] - cell["low"]) / 2):
                out.append(
                    f"S = {100 * cell['mean']:.1f} at k = {k} with {what}: what steers is not what the person chose"
                )
    counted = report.get("latent", {}).get("counted", 0.0)
    if counted > _COUNTS:
        out.append(
            f"{max(report['k'])} choices that contradict each other move z {100 * counted:.0f} % as far as a person's "
            "own: it counts choices in place of reading them"
        )
    return out
