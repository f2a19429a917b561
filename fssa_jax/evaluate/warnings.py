"""The warnings of a report, one line each."""

from typing import Any

_FEW_USERS = 10
_COUNTS = 0.5
_SURELY = 0.02  # a control whose S is below this is fine
_OF_HALF_WIDTH = 1.5  # half-widths of a 95 % interval, about three standard errors: there are two controls at every k


def report_warnings(report: dict[str, Any], texts_alone: bool) -> list[str]:
    """All warnings of a report; with `texts_alone` the model only knows the texts of its training."""
    scored = report["users"]["scored"]
    unknown = unknown_texts(report, texts_alone)
    out = [*steering_warnings(report), *limit_warnings(report), *few_people(scored), *unknown]
    health = report.get("latent")
    fitted = (report.get("training") or {}).get("calibration")
    guarded = bool(fitted) and not fitted["helps"]  # z is 0 on purpose, which the verdict says
    if health and scored > 1 and not unknown and not guarded:
        out += collapse_warnings(health, health["context_effect"] if len(report["k"]) > 1 else None)
    return out


def collapse_warnings(health: dict[str, Any], moved: float | None) -> list[str]:
    """Warnings about the latent.

    Args:
      health: see `latent.latent_health`.
      moved: mean change of a probability due to the context; None if only one k was scored.
    """
    warnings = []
    if health["active_units"] == 0:
        kl = f", KL {health['kl']:.3g}" if "kl" in health else ""
        warnings.append(
            f"latent collapse: 0 of {health['units']} units are active across users{kl}; "
            "lower the weight of the KL divergence or raise the learning rate"
        )
    if moved is not None and moved < 1e-3:
        warnings.append(
            f"context ignored: a full context changes a probability by {moved:.1g} on average; "
            "train longer, or check that users differ"
        )
    return warnings


def limit_warnings(report: dict[str, Any]) -> list[str]:
    """Warns if a model steers better than the Bayes limit, which means a leak."""
    return [
        f"S is {100 * cell['mean']:.1f} points above the Bayes limit at k = {k}, more than its interval: "
        "the targets leak into the model; check that contexts and targets share no text"
        for k, cell in (report.get("steering_gap") or {}).items()
        if cell["low"] > 0
    ]


def steering_warnings(report: dict[str, Any]) -> list[str]:
    """Warns if uninformative contexts steer, and if the encoder counts choices."""
    out = []
    controls = {"control_steering": "another person's context", "scrambled_steering": "choices of many people mixed"}
    for name, what in controls.items():
        for k, cell in (report.get(name) or {}).items():
            if abs(cell["mean"]) > max(_SURELY, _OF_HALF_WIDTH * (cell["high"] - cell["low"]) / 2):
                out.append(f"S = {100 * cell['mean']:.1f} at k = {k} with {what}: steering is not due to the choices")
    counted = report.get("latent", {}).get("counted", 0.0)
    if counted > _COUNTS:
        out.append(
            f"{max(report['k'])} choices that contradict each other move z {100 * counted:.0f} % as far as a person's "
            "own: the encoder counts choices instead of reading them"
        )
    return out


def few_people(scored: int) -> list[str]:
    """A warning if too few people are scored."""
    few = f"only {scored} people are scored: the scores are unreliable; give more people"
    return [few] if scored < _FEW_USERS else []


def unknown_texts(report: dict[str, Any], texts_alone: bool) -> list[str]:
    """A warning if a model that only knows the texts of its training is scored on other texts."""
    unknown = report["targets"]["unseen"] / max(report["targets"]["rows"], 1)
    if not texts_alone or unknown <= 0.5:
        return []
    return [
        f"{unknown:.0%} of the choices are about texts that were never judged in training, and this model knows no "
        "others; train with --config.model.learn_texts=no"
    ]
