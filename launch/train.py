"""Trains a reward model, or a policy, into a work directory; the same command again goes on where it stopped.

  python -m launch.train --config=configs/styles.py:np_btl --workdir=runs/styles
  python -m launch.train --config=configs/rows.py:np_btl --config.data.path=rows.jsonl --workdir=runs/mine

Any setting can be changed: --config.optim.learning_rate=3e-4. fssa_jax/config.py and
fssa_jax/policy/config.py list them all.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fssa_jax import program
from fssa_jax.config.policy import PolicyConfig
from fssa_jax.config.reward import Config
from fssa_jax.errors import UserError
from fssa_jax.experiment import train_policy as policy_train
from fssa_jax.experiment import train_reward as train

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:VARIANT], for example configs/styles.py:np_btl")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for checkpoints, metrics and data")


def main() -> None:
    """Trains what --config says into --workdir."""
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("--config and --workdir are needed; see --help")
    workdir = Path(_WORKDIR.value)
    if isinstance(_CONFIG.value, PolicyConfig):
        policy_train.train(_CONFIG.value, workdir)
    elif isinstance(_CONFIG.value, Config):
        train.train(_CONFIG.value, workdir)
    else:
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        raise UserError(f"--config={name}: no such file, or its get_config returns no Config or PolicyConfig")
    if isinstance(_CONFIG.value, PolicyConfig) and _CONFIG.value.is_sft:
        print(f"Trained. The language model is in {workdir / 'model'}: a --config.policy.base for policies")
        return
    print(f"Trained. Checkpoints and metrics are in {workdir}; next: python -m launch.evaluate --workdir={workdir}")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
