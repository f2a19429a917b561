"""How held-out people are scored."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import group, number, positive


@dataclasses.dataclass
class Evaluation:
    """Scores of held-out people; see evaluate/evaluate.py."""

    k: tuple[int, ...] = (0, 1, 3, 5, 10)
    """Context sizes to score: numbers of choices that the model reads. Of the default, those that at least half of the
    validation and of the test people have choices for."""
    draws: int = positive(4)
    """Random contexts per person."""
    samples: int = positive(16)
    """Samples of a Gaussian latent; their predictions are averaged."""
    bootstrap: int = positive(1000)
    """Bootstrap resamples of people for the intervals."""
    shuffles: int = positive(4)
    """Permutations for the control that gives each person another person's context."""
    shuffle_within_group: bool = False
    """The control takes the context of another person of the same group."""


Attribute = Literal["long", "list", "exclamation", "question", "emoji", "second_person", "contraction", "formal"]


@dataclasses.dataclass
class Generation:
    """Responses that the evaluation generates."""

    people: int = number(64, least=0)
    """Number of people to generate for; 0 for no generation."""
    prompts: int = positive(2)
    """Held-out prompts per person."""
    max_new: int = positive(128)
    """Maximum tokens per response."""
    temperature: float = number(1.0, least=0)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = number(1.0, above=0, most=1)
    """Nucleus sampling: sample from the most likely tokens whose probabilities sum to this."""
    strength: float = number(1.0, least=0)
    """Factor on what the adapters of people change, in what is written for them: 1 as trained, 0 the base."""
    best_of: tuple[int, ...] = (4, 16)
    """The baseline without training: of so many samples, of the base and of the policy, the one that the reward model
    prefers. Needs a reward model that reads new texts; () for none."""
    best_of_prompts: int = positive(16)
    """Maximum number of prompts for this baseline."""
    attributes: tuple[Attribute, ...] = (
        *("long", "list", "exclamation", "question", "emoji", "second_person", "contraction", "formal"),
    )
    """Attributes of responses whose movement between people who want opposites is measured; evaluate/attributes.py."""
    topic_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence encoder that tells how far responses keep to what the user said, where it is at hand; empty for none."""


@dataclasses.dataclass
class PolicyEvaluation(Evaluation):
    """Scores of policies, at the mean of z, and of the responses that they write."""

    draws: int = positive(1)
    samples: int = number(1, least=1, most=1)
    """Policies are scored at the mean of z."""
    users: int = positive(200)
    """Maximum number of people to score."""
    targets: int = positive(20)
    """Maximum number of choices to score per person."""
    in_context_users: int = number(16, least=0)
    """People for the in-context baseline, which puts the choices into the base's prompt; 0 for none."""
    generate: Generation = group(Generation)
    """Generated responses."""
