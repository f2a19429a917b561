"""Anybody's rows: a file of people's choices (columns: DESIGN contract 6, `fssa_jax/data/rows.py`).

  python -m launch.train --config=configs/rows.py:np_btl --config.data.path=rows.jsonl --workdir=runs/mine
  python -m launch.evaluate --workdir=runs/mine

Variants: btl (one reward for everybody), np_btl. What np_btl knows of a text follows from the rows
(`model.learn_texts` is "auto"). Where people judge the same texts again and again, every text has a learnt
embedding, started from a factorisation, and the encoder reads each response by itself, as liked or not liked.
Where most texts of the held-out people are new, rewards are linear in the features of the texts, and a choice is
only a comparison; say --config.model.learn_texts=no to have that in any case, for ranking texts that are yet to be
written.

Measured for np_btl on the Polis data (benchmarks/polis.py, two x86-64 CPU cores, no accelerator): gain over the
population model on 322 test users +2.8 / +3.9 / +4.3 points at K = 5 / 10 / 20, mean of three seeds; about
50 s a seed on one core.
"""

from fssa_jax.config import Config, DataConfig
from fssa_jax.errors import UserError


def get_config(variant: str = "np_btl") -> Config:
    """The configuration of a variant."""
    if variant not in ("btl", "np_btl"):
        raise UserError(f"configs/rows.py: unknown variant {variant!r}; give btl or np_btl")
    config = Config(name=f"rows {variant}", data=DataConfig(source="rows"))
    model = config.model
    model.kind = variant
    model.head, model.target, model.population = "bilinear", "none", "linear"
    model.width = model.encoder.latent_dim = 64
    model.encoder.aggregation, model.encoder.observations, model.encoder.rounds = "bayes", ("responses",), 3
    model.learn_texts = "auto"
    config.objective.text_bias_penalty = 4e-5
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.final_fraction = 1e-3, 20, 1.0
    config.optim.weight_decay, config.optim.average_decay = 0.0, 0.98
    config.train.users, config.train.max_context, config.train.targets = 128, 25, 30
    config.train.steps, config.train.steps_per_call = 300, 25
    config.train.validate_every, config.train.checkpoint_every = 25, 100
    config.train.population_steps, config.train.population_learning_rate = 600, 3e-2
    config.train.factor_steps, config.train.oracle_steps = 150, 200
    if variant == "btl":
        config.train.factor_steps = 0
    return config
