"""How much of the held-out people a policy is scored on: every response of every context is one forward pass."""

import dataclasses
import math
from typing import Literal

from fssa_jax.config import PolicyEvaluation

Budget = Literal["configured", "quick", "full"] | float
"""How much is scored and written; a number is half of the 95 % interval that is asked for, in points."""

_QUICK_USERS, _QUICK_TARGETS, _QUICK_PEOPLE = 16, 2, 48
_TWO_SIDED, _TARGETS = 1.96, 5


def with_budget(settings: PolicyEvaluation, budget: Budget, people: int, targets: int) -> PolicyEvaluation:
    """The settings of an evaluation, for a first look or for all that there is.

    * quick: at most 16 people and 2 targets each at the smallest and the largest k, responses for at most 48 people,
      one each, and none of the baselines that cost most (in-context, best of n). What is written is measured well
      enough to see whether a policy steers; accuracies have intervals of tens of points.
    * full: all people and all their targets, and responses for everybody.
    * a number h: as many people, targets and responses as 95 % intervals of ± h points take, see `interval_of`; all of
      them where there are too few.

    Args:
      settings: those of the configuration.
      budget: "configured" leaves them as they are.
      people, targets: held-out people, and the most targets of one of them.

    >>> from fssa_jax.config import PolicyEvaluation
    >>> from fssa_jax.evaluate.budget import with_budget
    >>> quick = with_budget(PolicyEvaluation(), "quick", people=400, targets=20)
    >>> quick.k, quick.users, quick.generate.best_of
    ((0, 10), 16, ())
    """
    writing = settings.generate
    if budget == "quick":
        wrote = min(writing.people, _QUICK_PEOPLE)
        return dataclasses.replace(
            settings,
            k=tuple(sorted({min(settings.k), max(settings.k)})),
            draws=1,
            shuffles=1,
            users=min(settings.users, _QUICK_USERS),
            targets=min(settings.targets, _QUICK_TARGETS),
            in_context_users=0,
            generate=dataclasses.replace(writing, people=wrote, prompts=1, best_of=()),
        )
    if budget == "full":
        everybody = people if writing.people else 0
        return dataclasses.replace(
            settings, users=people, targets=targets, generate=dataclasses.replace(writing, people=everybody)
        )
    if not isinstance(budget, str):
        return _with_interval(settings, budget, people, targets)
    return settings


def interval_of(settings: PolicyEvaluation, people: int, targets: int) -> tuple[float, float]:
    """Half of the 95 % intervals of the steering score and of the movement between opposed people, in points.

    With independent choices, all as uncertain as can be, for n people with t targets each and m responses for each of
    w people of whom a third wants an attribute and a third does not, in the mean over a attributes:

        1.96 · 100 / √(n t)   and   1.96 · 50 √(6 / (w m a))

    The figures of a report are by bootstrap over its people.

    Args:
      settings: of the evaluation.
      people, targets: held-out people, and the most targets of one of them.

    >>> from fssa_jax.config import PolicyEvaluation
    >>> from fssa_jax.evaluate.budget import interval_of, with_budget
    >>> settings = with_budget(PolicyEvaluation(), 10.0, people=400, targets=20)
    >>> settings.users * settings.targets, settings.generate.people
    (385, 74)
    >>> [round(points, 1) for points in interval_of(settings, people=400, targets=20)]
    [10.0, 9.9]
    """
    choices = min(settings.users, people) * min(settings.targets, targets)
    writing = settings.generate
    responses = min(writing.people, people) * writing.prompts
    of_score = _TWO_SIDED * 100 / math.sqrt(choices) if choices else math.inf
    of_movement = _TWO_SIDED * 50 * math.sqrt(6 / (responses * len(writing.attributes) or 1)) if responses else math.inf
    return of_score, of_movement


def _with_interval(settings: PolicyEvaluation, points: float, people: int, targets: int) -> PolicyEvaluation:
    """The smallest evaluation whose `interval_of` is within so many points: many people rather than many targets."""
    choices = (_TWO_SIDED * 100 / points) ** 2
    users = min(math.ceil(choices / min(_TARGETS, targets)), people)
    writing = settings.generate
    responses = 6 * (_TWO_SIDED * 50 / points) ** 2 / max(len(writing.attributes), 1)
    wrote = min(math.ceil(responses / 2) * 2, people) if writing.people else 0  # opposed people are pairs
    prompts = max(math.ceil(responses / wrote), 1) if wrote else writing.prompts
    return dataclasses.replace(
        settings,
        users=users,
        targets=min(math.ceil(choices / users), targets),
        generate=dataclasses.replace(writing, people=wrote, prompts=prompts),
    )


def amount(
    settings: PolicyEvaluation, people: int, targets: int, *, responses: int = 2, baselines: int = 0, reads: bool = True
) -> tuple[int, int]:
    """How many sequences are scored, and how many responses are written, at most.

    The in-context baseline, the best of n and the checks of the latent come on top.

    Args:
      settings: of the evaluation.
      people, targets: held-out people, and the most targets of one of them.
      responses: the most responses of a choice.
      baselines: number of other models that are scored.
      reads: whether the policy reads choices.
    """
    choices = min(settings.users, people) * min(settings.targets, targets)
    ks = len(set(settings.k)) if reads else 1
    contexts = ks * (settings.draws + 2 * settings.shuffles) if reads else settings.draws  # two controls
    # The base, every baseline, and the policy at every k; each once as configured and once as plain samples.
    writers = 1 + baselines + ks
    written = min(settings.generate.people, people) * settings.generate.prompts
    return responses * choices * (contexts + baselines), 2 * writers * written
