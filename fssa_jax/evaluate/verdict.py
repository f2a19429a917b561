"""The verdict of a report in words: do a person's choices help, by how much, how sure, and for whom not."""

from typing import Any, Literal

Helps = Literal["yes", "not shown", "no"]

_ENOUGH_ECE = 0.02  # more than by chance
_FEW_PEOPLE = 10  # an interval over fewer people is too narrow
_WORTH_A_WORD = 5e-4  # of a gain, which is printed in tenths of a point
_WORST = 0.01  # share of accuracy that the worst decile may lose against the population


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """{"helps": "yes", "not shown" or "no", "lines": […]}, from the series of a report that has a population model.

    Choices help if the 95 % interval of what they gain is above 0 at the largest k, and do harm if it is below 0. What
    they gain is over the same model without choices, if k = 0 was scored, else over the population model. Of fewer
    than 10 people neither is shown.

    >>> from fssa_jax.evaluate.verdict import verdict
    >>> cell = {"mean": 0.04, "low": 0.01, "high": 0.07}
    >>> verdict({"k": [0, 5], "gain": {"5": cell}, "users": {"scored": 40}})["lines"]
    ['5 choices of a person help: 4.0 points over the population model (95 % interval 1.0 to 7.0; 40 people)']
    """
    ks = [str(k) for k in report["k"]]
    last = ks[-1]
    gain, of_choices = report["gain"][last], report.get("choices_gain", report["gain"])[last]
    people = report["users"]["scored"]
    helps: Helps = "yes" if of_choices["low"] > 0 else "no" if of_choices["high"] < 0 else "not shown"
    few = helps != "not shown" and people < _FEW_PEOPLE
    helps = "not shown" if few else helps
    said = {"yes": "help", "no": "do harm", "not shown": "are not shown to help"}[helps]
    lines = [f"{last} choices of a person {said}: {_points(gain)} (95 % interval {_interval(gain)}; {people} people)"]
    if "choices_gain" in report and abs(report["gain"]["0"]["mean"]) >= _WORTH_A_WORD:
        lines.append(
            f"of these, {_of_points(report['gain']['0'])} are there without any choice, and {_of_points(of_choices)} "
            f"({_interval(of_choices)}) come from the choices"
        )
    if few:
        said = f"{people} people are too few to tell"
        lines.append(said if report.get("folds") else f"{said}: launch.evaluate --folds=5 scores everybody once")
    fitted = (report.get("training") or {}).get("calibration")
    if fitted and not fitted["helps"]:
        lines.append(
            f"everybody gets the population model: contexts did not help the {fitted['people']} validation people by "
            "more than one standard error"
        )
    elif not few:
        lines += _of_control(report, last)
    lines += _of_worst(report, ks)
    lines += _of_calibration(report, ks)
    lines += _of_training(report.get("training"))
    lines += [] if few else _of_more(report, ks)
    return {"helps": helps, "lines": lines}


def _points(cell: dict[str, float]) -> str:
    return f"{_of_points(cell)} over the population model"


def _interval(cell: dict[str, float]) -> str:
    return f"{round(100 * cell['low'], 1) + 0:.1f} to {round(100 * cell['high'], 1) + 0:.1f}"


def _of_control(report: dict[str, Any], k: str) -> list[str]:
    cell = (report.get("control_gain") or {}).get(k)
    if cell is None:
        return []
    if report.get("control_choices_gain", report["control_gain"])[k]["low"] > 0:
        return [f"another person's choices help as well, {_points(cell)} ({_interval(cell)}): the gain is not personal"]
    own = report["gain"][k]
    apart = own["low"] > cell["high"]
    what = "so it matters whose choices they are" if apart else "not clearly different from the person's own"
    return [f"with another person's choices: {_points(cell)} ({_interval(cell)}), {what}"]


def _of_worst(report: dict[str, Any], ks: list[str]) -> list[str]:
    own, other = report.get("worst_decile"), report.get("population_worst_decile")
    if not own or not other:
        return []
    lost = {k: own[k]["mean"] - other[k]["mean"] for k in ks}
    k = min(lost, key=lambda k: lost[k])
    mine, theirs = (f"{100 * cell[k]['mean']:.1f} %" for cell in (own, other))
    reached = f"{mine} of their choices are predicted, {theirs} by the population model"
    if lost[k] < -_WORST:
        return [f"it fails the worst decile of people at k = {k}: {reached}"]
    return [f"the worst decile of people, at k = {k} where it gains least: {reached}"]


def _of_calibration(report: dict[str, Any], ks: list[str]) -> list[str]:
    ece, chance = report.get("ece"), report.get("ece_by_chance")
    if not ece or not chance:
        return []
    lines, rise = [], report.get("nll_rise")
    if rise and rise["low"] > 0:
        lines.append(
            f"NLL grows by {rise['mean']:.3f} from {rise['from']} to {rise['to']} choices ({rise['low']:.3f} to "
            f"{rise['high']:.3f}): it is over-confident"
        )
    excess = {k: ece[k]["mean"] - chance[k]["mean"] for k in ks}
    worst = max(ks, key=lambda k: excess[k])
    found = f"ECE at k = {worst} is {ece[worst]['mean']:.3f}, by chance it would be {chance[worst]['mean']:.3f}"
    if excess[worst] > _ENOUGH_ECE and ece[worst]["mean"] > chance[worst]["high"]:
        lines.append(f"probabilities are off by {100 * excess[worst]:.1f} points on average: {found}")
    return lines or [f"probabilities can be trusted: {found}"]


def _of_training(training: dict[str, Any] | None) -> list[str]:
    if not training:
        return []
    best, last = training["best"], training["last"]
    if training.get("limited"):
        return [f"training may be too short: {last} steps, the most that were allowed, were best; give more steps"]
    if training.get("decided"):
        return [f"training took {last} steps, which was best for people who were not trained on"]
    if best == last and not training["decayed"]:
        return [f"training was too short: validation still improved at the last step, {last}; give more steps"]
    return [f"training was long enough: the best of {last} steps is {best}"]


def _of_more(report: dict[str, Any], ks: list[str]) -> list[str]:
    """What more choices, and more people to train on, would buy."""
    lines = []
    if (cell := report.get("last_gain")) and report["gain"][ks[-1]]["low"] > 0:
        gained = f"from {ks[-2]} to {ks[-1]} choices it gains {_of_points(cell)} ({_interval(cell)})"
        lines.append(f"{gained}: more choices would help" if cell["low"] > 0 else f"{gained}: more would add little")
    if curve := report.get("learning_curve"):
        fewer, all_people = curve["people"][-2:]
        cell = curve["last"]
        gained = f"trained on {all_people} people instead of {fewer} it gains {_of_points(cell)} ({_interval(cell)})"
        lines.append(
            f"{gained}: more people would help" if cell["low"] > 0 else f"{gained}: more are not shown to help"
        )
    return lines


def _of_points(cell: dict[str, float]) -> str:
    return f"{round(100 * cell['mean'], 1) + 0:.1f} points"
