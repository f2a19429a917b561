"""Checks rows, splits them, computes features, and writes a prepared directory that training reads at once.

  python -m launch.prepare_data --source=rows.jsonl --out=prepared
  python -m launch.prepare_data --source=rows.jsonl --out=prepared --config.data.on_error=skip
  python -m launch.prepare_data --source=rows.jsonl --out=prepared --encoder=sentence-transformers/all-MiniLM-L6-v2
  python -m launch.prepare_data --source=styles --out=prepared

source: JSONL(.gz), CSV, Parquet, a `datasets` directory or hub name; or styles, synthetic,
synthetic_published. Train on it with --config=configs/rows.py:np_btl --config.data.path=prepared.
"""

import json
import shutil
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from fssa_jax import config as configs
from fssa_jax import program
from fssa_jax.data import build, dataset
from fssa_jax.data.dataset import log_left_out
from fssa_jax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "rows, or the name of a benchmark")
_OUT = flags.DEFINE_string("out", None, "directory to write")
_ENCODER = flags.DEFINE_string("encoder", "", "directory or hub name of a model whose embeddings are the features")
_CONFIG = config_flags.DEFINE_config_dataclass("config", configs.Config())


def main() -> None:
    """Prepares --source into --out."""
    if not (_SOURCE.value and _OUT.value):
        raise UserError("--source and --out are needed; see --help")
    out = Path(_OUT.value)
    if out.exists() and any(out.iterdir()) and not dataset.is_prepared(out):
        raise UserError(f"{out}: exists and is not a prepared directory; give another --out")
    config = _CONFIG.value
    configs.check(config)
    if _SOURCE.value in ("styles", "synthetic", "synthetic_published"):
        config.data.source = _SOURCE.value
    else:
        config.data.source, config.data.path = "rows", _SOURCE.value
    if _ENCODER.value:
        config.data.features, config.data.encoder = "encoder", _ENCODER.value
    scratch = out.with_name(f"{out.name}.embedding")  # what a killed run has embedded
    prepared = build.load_dataset(config, scratch)
    log_left_out(prepared)
    if jax.process_index() == 0:
        dataset.save(prepared, out)
        shutil.rmtree(scratch, ignore_errors=True)
    counts = {name: value for name, value in prepared.report.items() if not isinstance(value, list)}
    print(json.dumps(counts, indent=1))
    print(f"Prepared in {out}; train with --config=configs/rows.py:np_btl --config.data.path={out}")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
