"""The paper's synthetic task."""

from fssa_jax.config import Config, DataConfig


def get_config(variant: str = "np_btl") -> Config:
    config = Config(name=f"synthetic {variant}", data=DataConfig(source="synthetic", train_users=2, eval_users=4000))
    config.model.kind = "np_btl" if variant == "vpl" else variant  # type: ignore[assignment]
    config.model.width = 64
    config.model.encoder.width = 64
    config.model.encoder.latent_dim = 16
    config.model.encoder.aggregation = "mean"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.0
    config.train.steps, config.train.population_steps, config.train.oracle_steps = 4000, 1000, 1000
    config.train.validate_every, config.train.checkpoint_every = 1000, 1000
    config.evaluate.draws = 1
    return config
