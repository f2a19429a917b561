r"""The paper's policies on UltraFeedback (arXiv 2412.13998, section 4.3), and recipes of our own.

  python -m launch.prepare_data --source=openbmb/UltraFeedback --out=data/hh --encoder=meta-llama/Meta-Llama-3-8B \
      "--config.data.labels=('helpfulness','honesty')" \
      --config.data.text_encoder.pool=last --config.data.text_encoder.max_tokens=1024
  python -m launch.train --config=configs/ultrafeedback_policy.py:hh,np_dpo --config.data.path=data/hh \
      --workdir=runs/hh_policy
  python -m launch.evaluate --workdir=runs/hh_policy

Variants: {hh,hht},{dpo_mixed,dpo_LABEL,np_dpo,np_dpo_ours}; hh has the labels helpfulness and honesty and steers
Qwen2.5-1.5B-Instruct, hht also truthfulness and steers gemma-2b. A dpo_LABEL is trained on the users of that label
alone: the specialist.

np_dpo has the published settings: β .05, learning rate 1e-5, k ~ U{0..6}, 9 targets, 2 users per step, 512 tokens, FiLM
on the output of every block, and one LoRA shared by all users (r 128, alpha 256, query and value; its dropout of .1
is not applied). Deliberate differences: splits by prompt, attention with a residual and mean pooling, reference
log-probabilities computed once.

np_dpo_ours follows what works on `styles`: low-rank adapters with a core per user (rank 8) on six projections, the
encoder of a reward model that is trained first, its probabilities as labels, an SFT term on all target responses
weighted by their advantages (prompts are of many kinds), β .33, learning rate 1e-4, 8 users with 4 targets each. It is
the same for both bases, and was not measured on them:

  python -m launch.train --config=configs/ultrafeedback_reward.py:hh,np_btl --config.data.path=data/hh --workdir=runs/hh
  python -m launch.train --config=configs/ultrafeedback_policy.py:hh,np_dpo_ours --config.data.path=data/hh \
      --config.encoder.init_from=runs/hh --workdir=runs/hh_ours

Published results, hh (implicit accuracy, not measured here): helpfulness 51.1/55.0/60.3/63.3/64.3 and honesty
49.3/45.6/40.5/39.4/36.4 at k = 0/1/3/5/10 (specialists 80.8 and 82.1), which is S(k) = 0.4/0.6/0.8/2.7/0.7: the
published code does not steer.
"""

from configs.ultrafeedback_reward import LABELS
from fssa_jax.config import (
    Dpo,
    Film,
    FrozenEncoder,
    LoraCore,
    NewEncoder,
    NoEncoder,
    NpBtl,
    PolicyConfig,
    SetEncoder,
    SharedLora,
    UltraFeedback,
)
from fssa_jax.errors import UserError

BASES = {"hh": "Qwen/Qwen2.5-1.5B-Instruct", "hht": "google/gemma-2b"}


def get_config(variant: str = "hh,np_dpo") -> PolicyConfig:
    """The configuration of a variant."""
    labels, _, model = variant.partition(",")
    known = ["np_dpo", "np_dpo_ours", "dpo_mixed", *(f"dpo_{label}" for label in LABELS.get(labels, ()))]
    if labels not in LABELS or model not in known:
        raise UserError(
            f"configs/ultrafeedback_policy.py: unknown variant {variant!r}; give hh or hht, a comma, and "
            "np_dpo, np_dpo_ours, dpo_mixed or dpo_LABEL"
        )
    config = PolicyConfig(name=f"ultrafeedback {variant}", data=UltraFeedback(labels=LABELS[labels]))
    policy = config.policy
    policy.base, policy.dtype, policy.remat, policy.max_length = BASES[labels], "bfloat16", "full", 512
    policy.adapter = Film(shared=SharedLora(rank=128, alpha=256.0))
    config.objective = Dpo(beta=0.05, sft_weight=0.0)
    config.encoder = NoEncoder()
    if model == "np_dpo":
        encoder = SetEncoder(width=256, latent_dim=256, pair="linear")
        config.encoder = NewEncoder(model=NpBtl(encoder=encoder, width=256))
    elif model not in ("np_dpo_ours", "dpo_mixed"):
        config.data.groups = (model.removeprefix("dpo_"),)  # type: ignore[union-attr]
    config.optim.learning_rate = 1e-5
    train = config.train
    train.users, train.targets, train.max_context = 2, 9, 6
    train.steps = train.population_steps = train.specialist_steps = 5000
    train.validate_every = train.checkpoint_every = 500
    train.steps_per_call = 1  # a batch is padded to its own longest text, not to that of several batches
    config.evaluate.users, config.evaluate.generate.max_new = 100, 256
    if model == "np_dpo_ours":
        policy.adapter = LoraCore(core="full", rank=8)
        config.encoder = FrozenEncoder(distil=1.0, imitate="advantage")
        config.objective = Dpo(beta=0.33)
        config.optim.learning_rate = 1e-4
        train.users, train.targets, train.max_context = 8, 4, 10
    return config
