"""Training loops."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import number, positive


@dataclasses.dataclass
class Loop:
    """Settings of every training loop."""

    steps: int = positive(3000)
    """Number of training steps."""
    steps_per_call: int = positive(50)
    """Steps per call of the compiled program."""
    validate_every: int = positive(250)
    """Steps between validations; a multiple of `steps_per_call`."""
    checkpoint_every: int = positive(500)
    """Steps between checkpoints; a multiple of `steps_per_call`."""
    patience: int = number(0, least=0)
    """Validations without improvement after which the training ends; 0 to train for all steps."""
    minutes: float = number(0.0, least=0)
    """Minutes per model after which the training ends; 0 for no limit. Where it ends then depends on the machine."""
    keep: int = positive(2)
    """Number of latest checkpoints to keep."""
    parallel: Literal["auto", "none", "pmap"] = "auto"
    """Data parallelism; `auto` is pmap if there is more than one device."""
    accumulate: int = positive(1)
    """Gradient accumulation: number of parts of a batch, computed one after the other."""


@dataclasses.dataclass
class RewardTraining(Loop):
    """A batch is `users` people with up to `max_context` choices to read and `targets` to predict."""

    users: int = positive(64)
    """People per batch."""
    max_context: int = positive(10)
    """A context has k ~ U{0..max_context} choices."""
    targets: int = positive(20)
    """Choices to predict per person."""
    population_steps: int = positive(1000)
    """Training steps of the population model, BTL on everybody: the baseline, and the init of `model.population`."""
    population_learning_rate: float = number(0.0, least=0)
    """Learning rate of the population model; 0 for optim.learning_rate."""
    factor_steps: int = number(0, least=0)
    """Steps of the matrix factorisation that initialises learnt texts; 0 for random init."""
    specialist_steps: int = number(1000, least=0)
    """Training steps of the specialists, which are given a person's group; 0 for none."""


@dataclasses.dataclass
class _TokenLoop(Loop):
    steps: int = positive(600)
    steps_per_call: int = positive(10)
    validate_every: int = positive(200)
    checkpoint_every: int = positive(200)
    length_buckets: int = number(2, least=1, most=8)
    """Number of padded lengths per part of a batch; texts are sorted by length. With one bucket the sequences of a
    person share one copy of their adapter; with more, each sequence has its own."""


@dataclasses.dataclass
class PolicyTraining(_TokenLoop):
    """A batch is `users` people with `targets` choices each."""

    users: int = positive(16)
    """People per batch."""
    max_context: int = positive(10)
    """A context has k ~ U{min_context..max_context} choices."""
    min_context: int = number(0, least=0)
    """The more is known of a person, the more a step teaches. Adapters that are linear in z need no small contexts."""
    targets: int = positive(4)
    """Choices per person."""
    population_steps: int = number(200, least=0)
    """Training steps of the population policy, DPO on everybody; 0 for none."""
    specialist_steps: int = number(0, least=0)
    """Training steps of the specialists, one adapter per group; 0 for none."""
    share_prompts: Literal["auto", "no", "yes"] = "auto"
    """Compute the prompt of a choice once for all its responses, which are then one sequence. `auto` does where this
    spares a tenth of the tokens, and attention is XLA's anyway, as on CPUs: fused kernels know no such sequences."""
    validation_users: int = positive(128)
    """Maximum number of people in a validation. It scores every response of every target at each k of `evaluate.k`."""
    validation_targets: int = positive(12)
    """Maximum number of choices per person in a validation."""


@dataclasses.dataclass
class SftTraining(_TokenLoop):
    """A batch is `texts` texts."""

    texts: int = positive(64)
    """Texts per batch."""
    unread: Literal["nothing", "targets", "topics"] = "nothing"
    """Texts of styles that a new base does not see: those on the prompts asked of held-out people (`targets`), or on
    the topics of these prompts (`topics`). On other data a base sees the texts of training people only."""
