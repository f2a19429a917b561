"""Trains a reward model, a policy or a language model into a work directory; the same command resumes a stopped run.

  python -m launch.train --config=configs/styles.py:np_btl --workdir=runs/styles
  python -m launch.train --config=configs/rows.py:np_btl --config.data.path=rows.jsonl --workdir=runs/mine

Flags override single settings: --config.optim.learning_rate=3e-4. docs/config.md lists all settings.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fssa_jax import program
from fssa_jax.config import SftConfig
from fssa_jax.config.experiment import KINDS
from fssa_jax.errors import UserError
from fssa_jax.experiment.train import train

program.define_config_words()
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:VARIANT], for example configs/styles.py:np_btl")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for checkpoints, metrics and data")


def main() -> None:
    """Trains the experiment of --config into --workdir."""
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("--config and --workdir are needed; see --help")
    if not isinstance(_CONFIG.value, KINDS):
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        known = ", ".join(kind.__name__ for kind in KINDS)
        raise UserError(f"--config={name}: no such file, or its get_config returns none of {known}")
    workdir = Path(_WORKDIR.value)
    train(_CONFIG.value, workdir)
    if isinstance(_CONFIG.value, SftConfig):
        print(f"Trained. The language model is in {workdir / 'model'}: give it to policies as --config.policy.base")
        return
    print(f"Trained. Checkpoints and metrics are in {workdir}; next: python -m launch.evaluate --workdir={workdir}")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
