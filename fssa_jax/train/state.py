"""The training state, its initialisation, and the optimiser."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from fssa_jax.config import AdamW
from fssa_jax.types import Leaf, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a training run. A batch depends only on the seed and the step.

    Attributes:
      step: () int32, number of updates so far.
      params: trained parameters.
      batch_stats: running statistics of batch normalisation; {} without.
      opt_state: state of the optimiser.
      average: exponential average of the parameters; {} if none is kept.
    """

    step: Leaf
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables for prediction, as `module.apply` takes them: averaged parameters if an average is kept."""
        return _variables(self.average or self.params, self.batch_stats)

    @property
    def trained(self) -> dict[str, PyTree]:
        """Variables for the loss: the parameters themselves, with the running statistics."""
        return _variables(self.params, self.batch_stats)

    def updated(self, params: PyTree, batch_stats: PyTree, opt_state: PyTree, average_decay: float) -> "TrainState":
        """The state one step later; an average, if kept, moves towards the parameters."""
        average = self.average
        if average:
            # A short memory at first, so that the average forgets the random init.
            t = self.step.astype(jnp.float32)
            decay = jnp.minimum(average_decay, (1 + t) / (10 + t))
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return TrainState(self.step + 1, params, batch_stats, opt_state, average)


def _variables(params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}


def start_state(variables: PyTree, optimizer: optax.GradientTransformation, average: bool = False) -> TrainState:
    """The state at step 0; `average` keeps an average of the parameters next to them."""
    params = variables["params"]
    kept = jax.tree.map(jnp.copy, params) if average else {}
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params), kept)


def make_optimizer(config: AdamW, steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to `final_fraction`, and clipping by the global norm."""
    adamw = optax.adamw(
        learning_rates(config, steps), config.b1, config.b2, config.eps, weight_decay=config.weight_decay
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def learning_rates(config: AdamW, steps: int) -> optax.Schedule:
    """step ↦ learning rate."""
    decay = config.decay_steps or steps
    warmup = min(config.warmup_steps, decay - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=decay,
        end_value=config.learning_rate * config.final_fraction,
    )
