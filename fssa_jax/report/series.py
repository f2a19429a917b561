"""The series of a report and their labels."""

from typing import Any

SERIES = {
    "accuracy": "accuracy",
    "bayes": "Bayes limit",
    "specialist": "specialists, given the group",
    "population": "population model",
    "in_context": "choices in the prompt",
    "in_context_own": "the same, this model",
    "control": "another person's context",
    "scrambled": "choices of many people mixed",
}

STEERING = {
    "steering": "this model",
    "bayes_steering": "Bayes limit",
    "steering_gap": "this model minus the Bayes limit",
    "specialist_steering": "specialists",
    "control_steering": "another person's context",
    "scrambled_steering": "choices of many people mixed",
}
NORMS = {
    "norm": "|z|",
    "norm_scrambled": "|z|, choices of many people mixed",
    "norm_contradicted": "|z|, choices that contradict each other (k rounded up to even)",
    "bayes": "shift of the exact posterior, nats",
    "bayes_scrambled": "the same, choices of many people mixed",
}
FEW = ("in_context", "in_context_own")


def series_of(report: dict[str, Any]) -> dict[str, str]:
    """The accuracy series and their labels; those measured on few people state the number."""
    few = f" ({report['users'].get('in_context', 0)} people)"
    return {name: label + (few if name in FEW else "") for name, label in SERIES.items()}
