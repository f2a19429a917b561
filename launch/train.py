"""Trains a reward model, a policy or a language model into a work directory; the same command resumes a stopped run.

  python -m launch.train --config=configs/styles.py:np_btl --workdir=runs/styles
  python -m launch.train --config=configs/rows.py:np_btl --config.data.path=rows.jsonl --workdir=runs/mine

Flags override single settings: --config.optim.learning_rate=3e-4. docs/config.md lists all settings.

--profile=100:120 writes a trace of these steps of the main model to WORKDIR/profile. --debug_nans ends the training at
the operation that yields the first NaN; it is slow.
"""

from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from fssa_jax import program
from fssa_jax.config import SftConfig
from fssa_jax.config.experiment import KINDS
from fssa_jax.errors import UserError
from fssa_jax.experiment.train import train
from fssa_jax.train.profile import Steps

program.define_config_words()
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py[:VARIANT], for example configs/styles.py:np_btl")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for checkpoints, metrics and data")
_PROFILE = flags.DEFINE_string("profile", "", "START:STOP, the steps to trace with JAX's profiler")
_DEBUG_NANS = flags.DEFINE_bool("debug_nans", False, "end at the operation that yields the first NaN")


def main() -> None:
    """Trains the experiment of --config into --workdir."""
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError("--config and --workdir are needed; see --help")
    if not isinstance(_CONFIG.value, KINDS):
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        known = ", ".join(kind.__name__ for kind in KINDS)
        raise UserError(f"--config={name}: no such file, or its get_config returns none of {known}")
    workdir = Path(_WORKDIR.value)
    traced = _steps(_PROFILE.value) if _PROFILE.value else None
    if _DEBUG_NANS.value:
        jax.config.update("jax_debug_nans", True)
    train(_CONFIG.value, workdir, traced)
    if isinstance(_CONFIG.value, SftConfig):
        print(f"Trained. The language model is in {workdir / 'model'}: give it to policies as --config.policy.base")
        return
    print(f"Trained. Checkpoints and metrics are in {workdir}; next: python -m launch.evaluate --workdir={workdir}")


def _steps(value: str) -> Steps:
    start, _, stop = value.partition(":")
    digits = all(part.isascii() and part.isdigit() and len(part) < 10 for part in (start, stop))
    if not digits or not int(start) < int(stop):
        raise UserError(f"--profile: needs START:STOP with START < STOP, such as 100:120; got {value}")
    return Steps(int(start), int(stop))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
