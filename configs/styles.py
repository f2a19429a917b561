r"""`styles`: text judged by simulated people, so the Bayes limit is known (fssa_jax/data/benchmarks/styles.py).

  python -m launch.train --config=configs/styles.py:np_btl --workdir=runs/styles
  python -m launch.evaluate --workdir=runs/styles

  python -m launch.train --config=configs/styles.py:sft --workdir=runs/base
  python -m launch.train --config=configs/styles.py:np_dpo_film --workdir=runs/policy \
      --config.policy.base=runs/base/model --config.encoder.init_from=runs/styles
  python -m launch.evaluate --workdir=runs/policy

Variants: btl (one reward for everybody), np_btl, np_btl_attention (the paper's encoder); sft (a small language model
that writes in every style), dpo (one policy for everybody), np_dpo_film, np_dpo_lora_core, np_dpo_lora (policies that
a person's choices steer).

Measured for the policies (benchmarks/policies.py --what=steering, the same hardware, mean of seeds 9, 10, 11): S(10) =
65.6 np_dpo_lora_core, 66.0 np_dpo_lora and 65.5 np_dpo_film against the Bayes limit 68.0; the generated text moves by
80, 80 and 68 points and is 99, 100 and 97 % well-formed. dpo does not steer.

Measured for np_btl (two x86-64 CPU cores, no accelerator; benchmarks/accuracy.py, mean of seeds 0, 1, 2): accuracy 49.9
/ 59.5 / 67.5 / 71.7 / 77.8 % at k = 0 / 1 / 3 / 5 / 10 against the Bayes limit 50.0 / 59.5 / 67.7 / 71.9 / 78.4;
another person's context 50.2 % at k = 10. For np_btl_attention (seed 0; 207 s on busy cores): 50.1 / 59.6 / 67.0 / 71.1
/ 77.0 % against the Bayes limit 50.0 / 59.5 / 67.6 / 71.8 / 78.2 of the same people.
"""

from fssa_jax.config import (
    BayesEncoder,
    Btl,
    DiscretePrior,
    Film,
    FrozenEncoder,
    Lora,
    LoraCore,
    NoEncoder,
    NpBtl,
    PolicyConfig,
    RewardConfig,
    SetEncoder,
    SftConfig,
    Styles,
)
from fssa_jax.errors import UserError

_PLACES = ("query", "value", "out", "gate", "up", "down")


def get_config(variant: str = "np_btl") -> RewardConfig | PolicyConfig | SftConfig:
    """The configuration of a variant."""
    if variant in ("btl", "np_btl", "np_btl_attention"):
        return _reward(variant)
    if variant == "sft":
        return _base()
    if variant == "dpo" or variant.removeprefix("np_dpo_") in ("film", "lora_core", "lora"):
        return _policy(variant)
    known = "btl, np_btl, np_btl_attention, sft, dpo, np_dpo_film, np_dpo_lora_core, np_dpo_lora"
    raise UserError(f"configs/styles.py: unknown variant {variant!r}; give one of {known}")


def _data() -> Styles:
    return Styles(train_users=10_000, eval_users=1000)


def _base() -> SftConfig:
    """A small Llama, trained from scratch, that writes responses in every style about every topic."""
    config = SftConfig(name="styles sft", data=_data())
    config.policy.max_length = 104
    config.optim.learning_rate, config.optim.warmup_steps = 1e-2, 50
    config.train.steps, config.train.texts, config.train.length_buckets = 800, 48, 3
    config.train.steps_per_call, config.train.validate_every, config.train.checkpoint_every = 20, 200, 200
    return config


def _policy(variant: str) -> PolicyConfig:
    """NP-DPO: frozen encoder, the reward model's probabilities as labels, SFT weighted by the reward model, small β."""
    config = PolicyConfig(name=f"styles {variant}", data=_data())
    config.policy.max_length = 104
    config.policy.adapter = Film(places=_PLACES)
    config.optim.learning_rate, config.optim.warmup_steps = 1e-2, 20
    config.train.users, config.train.targets, config.train.max_context = 32, 2, 10
    config.train.steps, config.train.population_steps, config.train.specialist_steps = 600, 100, 800
    config.train.length_buckets = 3
    config.evaluate.shuffles = 2
    generate = config.evaluate.generate
    generate.max_new, generate.temperature, generate.top_p = 96, 0.7, 0.95
    if variant == "dpo":
        config.encoder = NoEncoder()
        config.train.steps = 200
        return config
    kind = variant.removeprefix("np_dpo_")
    if kind == "film":
        # With several responses per person, the SFT term imitates the best of them. FiLM must move farthest from the
        # base for the same movement of the text, so its β is larger.
        config.encoder = FrozenEncoder(distil=1.0, imitate="advantage")
        config.objective.beta = 0.5
        config.train.users, config.train.targets = 16, 4
        config.policy.adapter = Film(places=_PLACES, hidden=64)
        config.optim.learning_rate = 5e-3
        return config
    # All prompts are of one kind, so their rewards are comparable.
    config.encoder = FrozenEncoder(distil=1.0, imitate="reward")
    config.objective.beta = 0.25
    config.train.users, config.train.targets = 8, 8
    if kind == "lora":
        config.policy.adapter, config.optim.learning_rate = Lora(places=_PLACES, rank=4), 5e-3
    else:
        config.policy.adapter, config.optim.learning_rate = LoraCore(places=_PLACES, rank=8, core="full"), 2e-2
    return config


def _reward(variant: str) -> RewardConfig:
    config = RewardConfig(name=f"styles {variant}", data=_data())
    config.optim.learning_rate = 1e-2
    config.train.steps, config.train.population_steps, config.train.specialist_steps = 4000, 250, 500
    config.train.checkpoint_every = config.train.validate_every = 500
    if variant == "btl":
        config.model = Btl(width=32)
    elif variant == "np_btl":
        # People differ in their weights on the features, and extreme weights are more common than moderate ones:
        # Bayes' rule with a discrete prior is the right encoder.
        encoder = BayesEncoder(prior=DiscretePrior(kinds=512))
        config.model = NpBtl(encoder=encoder, response="linear", width=32)
    else:
        set_encoder = SetEncoder(inputs=("difference",), width=128, heads=4, latent_dim=32)
        config.model = NpBtl(encoder=set_encoder, response="linear", head="bilinear", width=32)
        config.optim.learning_rate, config.train.steps, config.train.max_context = 3e-3, 5000, 16
    config.evaluate.draws, config.evaluate.shuffles = 2, 2
    return config
