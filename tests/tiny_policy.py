"""A language model, a policy and its configuration, small enough to train in seconds."""

from pathlib import Path

from fssa_jax.config.policy import PolicyConfig
from tests import small_lm, tiny

STEPS = 4


def base(directory: Path) -> Path:
    """A random language model of two layers that reads the words of `tiny.rows`."""
    small_lm.save_decoder(directory, layers=2, width=16, heads=2, groups=1, head_dim=8, mlp_width=24, max_length=256)
    return directory


def config(rows: Path | str, base: Path | str, reward: Path | str = "", **train: int) -> PolicyConfig:
    """NP-DPO by FiLM on the rows of `tiny`, its encoder that of a reward model trained on them, or from chance."""
    c = PolicyConfig(name="tiny policy")
    like = tiny.config(rows)
    c.data, c.model, c.optim = like.data, like.model, like.optim
    c.encoder.init_from, c.encoder.frozen = str(reward), bool(reward)
    c.policy.base, c.policy.max_length = str(base), 128
    settings = {
        "steps": STEPS,
        "steps_per_call": 2,
        "validate_every": 2,
        "checkpoint_every": 2,
        "users": 4,
        "max_context": 3,
        "targets": 2,
        "population_steps": 2,
        "oracle_steps": 2,
        "texts": 4,
        **train,
    }
    for name, value in settings.items():
        setattr(c.train, name, value)
    e = c.evaluate
    e.k, e.draws, e.bootstrap, e.shuffles, e.users, e.targets = (0, 1, 3), 1, 20, 1, 6, 3
    e.in_context_users, e.generate.people, e.generate.prompts, e.generate.max_new = 2, 4, 1, 8
    return c


def change(config, settings):
    for key, value in settings.items():
        target = config
        *path, last = key.split(".")
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return config
