r"""Your own rows: a file of people's choices (for its columns see README and `fssa_jax/data/rows.py`).

  python -m launch.train --config=configs/rows.py:np_btl --config.data.path=rows.jsonl --workdir=runs/mine
  python -m launch.evaluate --workdir=runs/mine

  python -m launch.train --config=configs/rows.py:sft --config.data.path=rows.jsonl --workdir=runs/base
  python -m launch.train --config=configs/rows.py:np_dpo --config.data.path=rows.jsonl --workdir=runs/policy \
      --config.policy.base=runs/base/model --config.encoder.init_from=runs/mine

Variants: btl (one reward for everybody), np_btl, np_btl_attention (the paper's encoder), sft, np_dpo. sft trains a
small language model from scratch on the texts of the rows; with
--config.policy.base=NAME --config.optim.learning_rate=1e-5 it fine-tunes a pretrained one. np_dpo steers a language
model by a person's choices, with the encoder of np_btl.

np_btl is for data that nobody tuned (`auto` is "yes"). Short fits, scored on people who were not trained on, decide the
penalties, and choose between learnt embeddings of texts, linear functions of their features, both, and kinds of people,
or average up to three of these. Where choices are not shown to help, everybody gets the population model. See
experiment/choose.py and evaluate/calibrate.py. --config.auto=no keeps the settings of this file;
--config.model.learn_texts=no is for ranking texts that do not exist yet; --config.model.members=3 trains three models
from different seeds and averages them.

Measured for np_btl on the Polis data (benchmarks/polis.py, two x86-64 CPU cores, no accelerator): gain over the
population model on 322 test users +3.0 / +3.9 / +4.5 points at K = 5 / 10 / 20, mean of three seeds. For
np_btl_attention (one seed, 120 s): −1.3 / +1.6 / +2.4 / +2.7 at K = 0 / 5 / 10 / 20. For np_dpo on the same data
(benchmarks/policies.py --what=polis, one seed): +2.1 / +2.3 / +2.6 over the population's DPO, with the fixed np_btl
that was the default before.
"""

from fssa_jax.config import (
    BayesEncoder,
    Btl,
    FrozenEncoder,
    LoraCore,
    NormalPrior,
    NpBtl,
    PolicyConfig,
    RewardConfig,
    SetEncoder,
    SftConfig,
)
from fssa_jax.errors import UserError


def get_config(variant: str = "np_btl") -> RewardConfig | PolicyConfig | SftConfig:
    """The configuration of a variant."""
    if variant == "sft":
        return _base()
    if variant == "np_dpo":
        return _policy()
    if variant not in ("btl", "np_btl", "np_btl_attention"):
        known = "btl, np_btl, np_btl_attention, sft, np_dpo"
        raise UserError(f"configs/rows.py: unknown variant {variant!r}; give one of {known}")
    config = RewardConfig(name=f"rows {variant}")
    if variant == "np_btl":
        model = NpBtl(
            encoder=BayesEncoder(("responses",), prior=NormalPrior(rounds=3), gaussian=True, lapses=True),
            keep_population=True,
            feature_scale=0.0,
        )
    else:
        inputs = ("chosen", "rejected", "difference", "margin")
        model = NpBtl(encoder=SetEncoder(inputs=inputs, width=128, heads=4, latent_dim=64))
    model.response, model.head, model.population = "none", "bilinear", "linear"
    model.width, model.learn_texts = 64, "auto"
    config.model = model
    config.objective.text_bias_penalty = 4e-5
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.final_fraction = 1e-3, 20, 1.0
    config.optim.weight_decay, config.optim.average_decay = 0.0, 0.98
    config.train.users, config.train.max_context, config.train.targets = 128, 25, 30
    config.train.steps, config.train.steps_per_call = 600, 25
    config.train.validate_every, config.train.checkpoint_every = 25, 100
    config.train.population_steps, config.train.population_learning_rate = 600, 3e-2
    config.train.factor_steps, config.train.specialist_steps = 150, 200
    if variant == "np_btl":
        config.auto = "yes"
        config.objective.kind, config.objective.kl_weight, config.objective.samples = "predictive", 0.0, 8
        config.optim.learning_rate, config.optim.average_decay = 3e-3, 0.95
        config.train.steps, config.train.patience, config.train.population_steps = 3000, 6, 3000
    if variant == "btl":
        config.model = Btl(width=64, population="linear", learn_texts="auto")
        config.train.factor_steps = 0
    return config


def _base() -> SftConfig:
    config = SftConfig(name="rows sft")
    config.policy.max_length, config.policy.truncate = 256, "left"
    # No early stopping on new texts: held-out people judge the same texts, so the base should memorise them.
    config.train.steps = config.train.validate_every = 800
    config.optim.learning_rate, config.optim.warmup_steps = 1e-2, 50
    config.train.texts, config.train.steps_per_call, config.train.checkpoint_every = 64, 20, 200
    return config


def _policy() -> PolicyConfig:
    config = PolicyConfig(name="rows np_dpo", encoder=FrozenEncoder(distil=1.0))
    config.policy.max_length, config.policy.truncate = 256, "left"
    config.policy.adapter = LoraCore(core="full", rank=8)
    config.optim.learning_rate, config.optim.warmup_steps = 5e-3, 20
    config.train.users, config.train.targets, config.train.max_context = 64, 2, 20
    config.train.steps = config.train.population_steps = 400
    config.train.specialist_steps = 0
    config.objective.sft_weight = 0.1
    return config
