"""The paper's synthetic task: two kinds of user on y in [0, 1] (arXiv 2412.13998, section 4.1).

  python -m launch.train --config=configs/synthetic.py:np_btl --workdir=runs/synthetic
  python -m launch.evaluate --workdir=runs/synthetic

Variants: btl, dpl (one reward for everybody), np_btl, vpl (the VPL objective and its mean aggregation). With one seed
btl and dpl reach 75.0 % at every k (NLL .479 and .357; 37 s), vpl 75.0 / 87.3 / 96.7 / 99.0 / 99.8 % (NLL .477 at
k = 0, .040 at k = 10; 109 s on one core).
The published fixed split of 20,000 pairs: --config.data.published=true.

Measured for np_btl (two x86-64 CPU cores, no accelerator; benchmarks/accuracy.py, mean of five seeds; 116 s per seed
for training and evaluation): accuracy 74.8 / 87.4 / 96.8 / 99.1 / 99.9 % at k = 0 / 1 / 3 / 5 / 10 against the Bayes
limit 75.0 / 87.5 / 96.9 / 99.2 / 99.98, NLL .362 / .188 / .057 at k = 0 / 1 / 3 against .347 / .173 / .043. On the
published split 76.5 / 87.4 / 96.2 / 98.9 / 99.9 % against the limit 76.5 / 87.4 / 96.4 / 99.0 / 99.9 of the same users.
"""

from fssa_jax.config import Btl, Dpl, NeuralProcess, NpBtl, RewardConfig, SetEncoder, Synthetic
from fssa_jax.errors import UserError


def get_config(variant: str = "np_btl") -> RewardConfig:
    """The configuration of a variant."""
    if variant not in ("btl", "dpl", "np_btl", "vpl"):
        raise UserError(f"configs/synthetic.py: unknown variant {variant!r}; give btl, dpl, np_btl or vpl")
    config = RewardConfig(name=f"synthetic {variant}", data=Synthetic())
    if variant in ("btl", "dpl"):
        config.model = Btl(width=64) if variant == "btl" else Dpl(width=64)
    else:
        # Users disagree without noise: only a latent that is integrated out can say "either" at k = 0. The likelihood
        # of the integrated prediction teaches it to.
        encoder = SetEncoder(width=64, latent_dim=16, gaussian=True)
        encoder.aggregation = "mean" if variant == "vpl" else "attention"
        config.model = NpBtl(encoder=encoder, width=64)
    config.objective = NeuralProcess(kind="predictive", kl_weight=0.0, samples=8)
    if variant == "vpl":
        config.objective = NeuralProcess(kind="vpl", kl_weight=0.01, samples=4)
    config.optim.learning_rate, config.optim.weight_decay = 3e-3, 0.0
    config.train.steps, config.train.population_steps, config.train.specialist_steps = 3500, 500, 500
    config.train.validate_every = config.train.checkpoint_every = 500
    config.evaluate.draws, config.evaluate.samples = 1, 128
    return config
