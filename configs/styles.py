"""`styles`: text with known people."""

from fssa_jax.config import Config, DataConfig


def get_config(variant: str = "np_btl") -> Config:
    config = Config(name=f"styles {variant}")
    config.data = DataConfig(source="styles")
    config.model.kind = variant
    m = config.model
    m.width = 32
    m.encoder.latent_dim = 32
    m.encoder.aggregation = "bayes"
    m.head = "bilinear"
    m.target = "linear"
    config.train.steps = 600
    config.train.population_steps = 200
    config.train.oracle_steps = 600
    config.optim.learning_rate = 3e-3
    return config
