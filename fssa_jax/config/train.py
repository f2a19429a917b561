"""Training loops."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import number, positive


@dataclasses.dataclass
class _Loop:
    steps: int = positive(3000)
    """Of the whole training."""
    steps_per_call: int = positive(50)
    """Steps in one call of the device."""
    validate_every: int = positive(250)
    """Steps; a multiple of `steps_per_call`."""
    checkpoint_every: int = positive(500)
    """Steps; a multiple of `steps_per_call`."""
    keep: int = positive(2)
    """Latest checkpoints."""
    parallel: Literal["auto", "none", "pmap"] = "auto"
    """`auto` is pmap where there is more than one device."""
    accumulate: int = positive(1)
    """Parts of a batch that are taken one after the other."""


@dataclasses.dataclass
class RewardTraining(_Loop):
    """A batch is `users` people with up to `max_context` choices to read and `targets` to predict."""

    users: int = positive(64)
    """People of a batch."""
    max_context: int = positive(10)
    """A context has k ~ U{0..max_context} choices."""
    targets: int = positive(20)
    """Choices to predict, of each person."""
    population_steps: int = positive(1000)
    """Of BTL on everybody: the baseline, and the start of `model.population`."""
    population_learning_rate: float = number(0.0, least=0)
    """0 for optim.learning_rate."""
    factor_steps: int = number(0, least=0)
    """Of the matrix factorisation that learnt texts start from; 0 for random init."""
    specialist_steps: int = number(1000, least=0)
    """Of the specialists, who are told the group of a person; 0 for none."""


@dataclasses.dataclass
class _TokenLoop(_Loop):
    steps: int = positive(600)
    steps_per_call: int = positive(10)
    validate_every: int = positive(200)
    checkpoint_every: int = positive(200)
    length_buckets: int = number(2, least=1, most=8)
    """Texts of a part are sorted by length and padded in so many buckets. With one, the sequences of a person share the
    memory of an adapter; with more, each has its own."""


@dataclasses.dataclass
class PolicyTraining(_TokenLoop):
    """A batch is `users` people with `targets` choices each."""

    users: int = positive(16)
    """People of a batch."""
    max_context: int = positive(10)
    """A context has k ~ U{0..max_context} choices."""
    targets: int = positive(4)
    """Choices of each person."""
    population_steps: int = number(200, least=0)
    """Of the DPO policy of everybody; 0 for none."""
    specialist_steps: int = number(0, least=0)
    """Of the specialists, one adapter per group; 0 for none."""


@dataclasses.dataclass
class SftTraining(_TokenLoop):
    """A batch is `texts` texts."""

    texts: int = positive(64)
    """Texts of a batch."""
    unread: Literal["nothing", "targets", "topics"] = "nothing"
    """Of styles, what a new base does not read: the prompts that held-out people are asked about, or their topics. Of
    rows it reads the texts of training people."""
