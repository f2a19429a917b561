"""Anybody's rows."""

from fssa_jax.config import Config, DataConfig


def get_config(variant: str = "np_btl") -> Config:
    config = Config(name=f"rows {variant}", data=DataConfig(source="rows"))
    config.model.kind = variant  # type: ignore[assignment]
    model = config.model
    model.head, model.target, model.population = "bilinear", "linear", "linear"
    model.width = model.encoder.latent_dim = 32
    model.encoder.aggregation = "bayes"
    model.encoder.observations = ("responses",)
    model.learn_texts, model.text_dropout = True, 0.2
    config.objective.text_penalty = 3e-3
    config.optim.learning_rate, config.optim.average_decay, config.optim.warmup_steps = 2e-3, 0.98, 20
    config.optim.weight_decay = 0.0
    config.optim.final_fraction = 1.0
    config.train.users, config.train.max_context, config.train.targets = 128, 25, 30
    config.train.steps, config.train.steps_per_call = 900, 25
    config.train.validate_every, config.train.checkpoint_every = 50, 100
    config.train.population_steps = 300
    config.train.population_learning_rate = 3e-2
    config.objective.text_bias_penalty = 4e-5
    config.train.oracle_steps = 0
    config.evaluate.shuffle_within_group = True
    config.evaluate.bootstrap = 50
    config.evaluate.k = (0, 5, 10, 20)
    return config
