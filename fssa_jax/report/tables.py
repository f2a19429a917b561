"""The metrics of a report as text tables."""

from typing import Any

from fssa_jax.errors import printable
from fssa_jax.report.series import series_of


def format_table(report: dict[str, Any]) -> str:
    """The series as a text table, one column per k: accuracies in per cent, S and gains in points."""
    ks = [str(k) for k in report["k"]]
    lines = [f"* {line}" for line in report.get("verdict", {}).get("lines", [])]
    lines += [f"{'':34s}" + "".join(f"{'k = ' + k:>16s}" for k in ks)]
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
    rows += [("steering_gap", "S minus Bayes")] if report.get("steering_gap") else []
    rows += [("gain", "gain over population")] if report.get("gain") else []
    for name, label in rows:
        cells = (_cell(report[name][k]) for k in ks)
        unit = "points" if "steering" in name or name == "gain" else "%"
        lines.append(f"{label + ', ' + unit:34s}" + "".join(f"{cell:>16s}" for cell in cells))
    for group, series in report.get("by_group", {}).items():
        for name, cells in series.items():
            label = printable(group if name == "accuracy" else f"{group}, {name}")
            values = (_cell(cells[k]) for k in ks)
            unit = "points" if "steering" in name else "%"
            lines.append(f"{label + ', ' + unit:34s}" + "".join(f"{cell:>16s}" for cell in values))
    for name, label in (("nll", "NLL, nats"), ("bayes_nll", "Bayes NLL"), ("ece", "ECE")):
        if report.get(name):
            lines.append(f"{label:34s}" + "".join(f"{report[name][k]['mean']:16.3f}" for k in ks))
    users, targets = report["users"], report["targets"]
    lines.append(f"{users['scored']} people, {targets['rows']} choices; checkpoint of step {report['step']}")
    return "\n".join(lines)


def _cell(cell: dict[str, float]) -> str:
    return f"{round(100 * cell['mean'], 1) + 0:.1f} ±{_half_width(cell):.1f}"  # + 0: never "-0.0"


def _half_width(cell: dict[str, float]) -> float:
    return 50 * (cell["high"] - cell["low"])


_COLUMNS = {
    "attribute_movement": ("attributes move by", 100, ".0f", " points"),
    "movement": ("moves by", 100, ".1f", " points"),
    "reward": ("true reward", 1, ".2f", ""),
    "reward_of_specialists": ("relative to specialists", 100, ".0f", " %"),
    "reward_of_known": ("relative to optimal", 100, ".0f", " %"),
    "bayes_reward_of_known": ("exact posterior, relative to optimal", 100, ".0f", " %"),
    "win_rate_over_base": ("wins over base", 100, ".0f", " %"),
    "win_rate_over_population": ("wins over population", 100, ".0f", " %"),
    "model_reward": ("reward-model score", 1, ".2f", ""),
    "model_win_rate_over_base": ("wins over base (reward model)", 100, ".0f", " %"),
    "model_win_rate_over_population": ("wins over population (reward model)", 100, ".0f", " %"),
    "well_formed": ("well-formed", 100, ".1f", " %"),
    "plain_movement": ("at temperature 1: moves by", 100, ".1f", " points"),
    "plain_well_formed": ("at temperature 1: well-formed", 100, ".1f", " %"),
    "kl": ("KL", 1, ".2f", ""),
    "words": ("words", 1, ".0f", ""),
    "finished": ("finished", 100, ".0f", " %"),
    "nll_per_token": ("NLL per token", 1, ".2f", ""),
    "topic": ("topic", 1, ".2f", ""),
    "distinct": ("distinct", 100, ".0f", " %"),
    "without_loops": ("without loops", 100, ".0f", " %"),
    "kl_bound": ("KL at most", 1, ".2f", ""),
}


def generation_table(report: dict[str, Any]) -> list[list[str]]:
    """Metrics of the generated responses as rows of cells, after a row of column names; empty columns are left out."""
    generation = report.get("generation")
    if not generation:
        return []
    rows = [(name, generation[name]) for name in ("base", "population", "specialist") if name in generation]
    rows += [(f"policy, k = {k}", out) for k, out in generation["policy"].items()]
    for name, of_n in generation.get("best_of", {}).items():
        rows += [(f"{name}, best of {n}" if n != "1" else f"{name}, one sample", of_n[n]) for n in of_n if n.isdigit()]
    columns = {name: how for name, how in _COLUMNS.items() if any(out.get(name) is not None for _, out in rows)}
    if "movement" in columns:  # the attributes are known: this is the same mean, with its interval
        columns.pop("attribute_movement", None)
        rows = [
            (label, out | {"movement": out.get("attribute_movement") or out.get("movement")}) for label, out in rows
        ]
    table = [["", *(label for label, *_ in columns.values())]]
    for label, out in rows:
        cells = [
            _generation_cell(out.get(name), scale, digits, unit) for name, (_, scale, digits, unit) in columns.items()
        ]
        table.append([label, *cells])
    return table


def _generation_cell(value: Any, scale: float, digits: str, unit: str) -> str:
    """A number, or one with its interval."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return f"{scale * value['mean']:{digits}} ±{scale / 2 * (value['high'] - value['low']):{digits}}{unit}"
    return f"{scale * value:{digits}}{unit}"


def format_generation(report: dict[str, Any]) -> str:
    """Metrics of the generated responses as a text table."""
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
