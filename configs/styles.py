"""`styles`: text with known people, so with a known limit (fssa_jax/data/styles.py).

  python -m launch.train --config=configs/styles.py:np_btl --workdir=runs/styles
  python -m launch.evaluate --workdir=runs/styles

Variants: btl (one reward for everybody), np_btl.

Measured for np_btl (two x86-64 CPU cores, no accelerator; benchmarks/accuracy.py, mean of three seeds; 44 to 61 s a
seed for training and evaluation): accuracy 49.8 / 59.4 / 67.3 / 71.2 / 77.0 % at k = 0 / 1 / 3 / 5 / 10 against the
Bayes limit 50.0 / 59.5 / 67.7 / 71.9 / 78.4; another person's context 50.2 % at k = 10.
"""

from fssa_jax.config import Config, DataConfig
from fssa_jax.errors import UserError


def get_config(variant: str = "np_btl") -> Config:
    """The configuration of a variant."""
    if variant not in ("btl", "np_btl"):
        raise UserError(f"configs/styles.py: unknown variant {variant!r}; give btl or np_btl")
    config = Config(name=f"styles {variant}")
    config.data = DataConfig(source="styles", train_users=10_000, eval_users=1000)
    config.model.kind = variant
    config.model.width = config.model.encoder.latent_dim = 32
    config.model.target = "linear"
    # People differ by weights on what the features say: Bayesian regression is the right encoder.
    config.model.encoder.aggregation, config.model.encoder.rounds = "bayes", 2
    config.optim.learning_rate = 3e-3
    config.train.steps, config.train.population_steps, config.train.oracle_steps = 1500, 200, 500
    config.train.checkpoint_every = config.train.validate_every = 500
    config.train.population_steps = 250
    config.evaluate.draws, config.evaluate.shuffles = 2, 2
    return config
