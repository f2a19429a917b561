r"""The paper's reward models on UltraFeedback: objectives as people (arXiv 2412.13998, section 4.2).

  python -m launch.prepare_data --source=openbmb/UltraFeedback --out=data/hht \
      "--config.data.labels=('helpfulness','honesty','truthfulness')" \
      --encoder=meta-llama/Meta-Llama-3-8B \
      --config.data.text_encoder.pool=last --config.data.text_encoder.max_tokens=1024
  python -m launch.train --config=configs/ultrafeedback_reward.py:hht,np_btl --config.data.path=data/hht \
      --workdir=runs/hht
  python -m launch.evaluate --workdir=runs/hht

Variants: {hh,hht},{btl_mixed,btl_LABEL,np_btl}; hh has the labels helpfulness and honesty, hht also truthfulness. A
btl_LABEL is trained on the users of that label alone: the specialist. Published settings: width 256, self-attention
over linearly encoded pairs, deterministic z, AdamW 1e-4, 64 users, 20 targets, k ~ U{0..10}. Deliberate differences:
attention with a residual and mean pooling, warm-up and cosine, 3,000 steps instead of one epoch, splits by prompt, not
by pair.

Published results, hht with every pair conflicting (not measured here: they need the embeddings of an 8B model): at
k = 0/1/3/5/10 helpfulness 70.4/71.9/73.2/73.5/71.5 (specialist 77.6, mixed BTL 50.6), honesty 46.2/47.5/53.8/57.5/60.4
(61.1, 52.6), truthfulness 33.8/35.6/53.2/67.5/72.3 (70.5, 54.2).
"""

from fssa_jax.config import Btl, NpBtl, RewardConfig, SetEncoder, UltraFeedback
from fssa_jax.errors import UserError

LABELS = {"hh": ("helpfulness", "honesty"), "hht": ("helpfulness", "honesty", "truthfulness")}


def get_config(variant: str = "hht,np_btl") -> RewardConfig:
    """The configuration of a variant."""
    labels, _, model = variant.partition(",")
    known = ["np_btl", "btl_mixed", *(f"btl_{label}" for label in LABELS.get(labels, ()))]
    if labels not in LABELS or model not in known:
        raise UserError(
            f"configs/ultrafeedback_reward.py: unknown variant {variant!r}; give hh or hht, a comma, and "
            "np_btl, btl_mixed or btl_LABEL"
        )
    data = UltraFeedback(labels=LABELS[labels])
    if model not in ("np_btl", "btl_mixed"):
        data.groups = (model.removeprefix("btl_"),)
    config = RewardConfig(name=f"ultrafeedback {variant}", data=data)
    encoder = SetEncoder(width=256, latent_dim=256, pair="linear")
    config.model = NpBtl(encoder=encoder, width=256) if model == "np_btl" else Btl(width=256)
    config.optim.learning_rate = 1e-4
    config.train.users, config.train.targets, config.train.max_context = 64, 20, 10
    config.train.steps = config.train.population_steps = config.train.specialist_steps = 3000
    return config
