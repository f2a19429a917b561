"""How held-out people are scored."""

import dataclasses

from fssa_jax.config.fields import group, number, positive


@dataclasses.dataclass
class Evaluation:
    """Scores of held-out people; see evaluate/evaluate.py."""

    k: tuple[int, ...] = (0, 1, 3, 5, 10)
    """Numbers of choices that are read."""
    draws: int = positive(4)
    """Random contexts per person."""
    samples: int = positive(16)
    """Of a Gaussian latent; their predictions are averaged."""
    bootstrap: int = positive(1000)
    """Resamples of people for the intervals."""
    shuffles: int = positive(4)
    """Permutations of the control with another person's context."""
    shuffle_within_group: bool = False
    """That control takes the context of a person of the same group."""


@dataclasses.dataclass
class Generation:
    """Responses that the evaluation samples."""

    people: int = number(64, least=0)
    """For whom; 0 for no generation."""
    prompts: int = positive(2)
    """Of each person's held-out prompts."""
    max_new: int = positive(128)
    """Tokens of a response at most."""
    temperature: float = number(1.0, least=0)
    """0 for the most likely token."""
    top_p: float = number(1.0, above=0, most=1)
    """Sample from the most likely tokens of this mass."""


@dataclasses.dataclass
class PolicyEvaluation(Evaluation):
    """Scores of policies, at the mean of z, and what they write."""

    draws: int = positive(1)
    samples: int = number(1, least=1, most=1)
    """Policies are scored at the mean of z."""
    users: int = positive(200)
    """People of the split that are scored at most."""
    targets: int = positive(20)
    """Choices of each that are scored at most."""
    in_context_users: int = number(16, least=0)
    """People whose choices are also written into the prompt of the base; 0 for none."""
    generate: Generation = group(Generation)
    """What is written for people."""
