"""Checks rows, splits them, computes features, and writes a prepared directory that training can read directly.

  python -m launch.prepare_data --source=rows.jsonl --out=prepared
  python -m launch.prepare_data --source=rows.jsonl --out=prepared --config.data.on_error=skip
  python -m launch.prepare_data --source=rows.jsonl --out=prepared --encoder=sentence-transformers/all-MiniLM-L6-v2
  python -m launch.prepare_data --source=rows.jsonl --out=prepared --tokenizer=Qwen/Qwen2.5-1.5B-Instruct
  python -m launch.prepare_data --source=openbmb/UltraFeedback --out=prepared
  python -m launch.prepare_data --source=styles --out=prepared
  python -m launch.prepare_data --source=rows.csv --to=trl --out=rows.jsonl

source: JSONL, JSON, CSV, TSV (plain or gzipped), Parquet, a folder of these, a `datasets` directory or hub name; or
styles, chat, synthetic, synthetic_published. Supported schemas (docs/data.md): choices of one of two or of n, TRL's
pairs, rankings, ratings, UltraFeedback, and pairs of conversations without people (HH-RLHF).

If a run is killed, the same command resumes it and keeps the finished embeddings. On several hosts with a shared disk,
run the same command with --coordinator on each: every process embeds its share, the first one writes the result. Train
on it with --config=configs/rows.py:np_btl --config.data.path=prepared.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.experiment.prepare import PrepareConfig, prepare, write_trl

program.define_config_words()
_SOURCE = flags.DEFINE_string("source", None, "rows, or the name of a benchmark")
_OUT = flags.DEFINE_string("out", None, "directory to write")
_ENCODER = flags.DEFINE_string("encoder", "", "directory or hub name of a model whose embeddings are the features")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "directory or hub name of a model; also write the texts' tokens under its tokenizer"
)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 512, "maximum tokens of a prompt with its response; with --tokenizer")
_TRUNCATE = flags.DEFINE_enum(
    "truncate", "drop", ["drop", "left", "right"], "drop texts over --max_length, or cut them on this side"
)
_TO = flags.DEFINE_enum(
    "to", "directory", ["directory", "trl"], "what --out is: a prepared directory, or a JSONL file of TRL's rows"
)
_JSON = flags.DEFINE_bool("json", False, "also print the counts as JSON")
program.define_process_flags()
flags.adopt_module_key_flags(program)
_CONFIG = config_flags.DEFINE_config_dataclass("config", PrepareConfig())


def main() -> None:
    """Prepares --source into --out."""
    if not (_SOURCE.value and _OUT.value):
        raise UserError("--source and --out are needed; see --help")
    data = _CONFIG.value.data
    if _ENCODER.value:
        data.features, data.text_encoder.name = "encoder", _ENCODER.value
    program.join_processes()
    out, truncate = Path(_OUT.value), _TRUNCATE.value
    if _TO.value == "trl":
        choices, pairs = write_trl(data, _SOURCE.value, out)
        what = f"{choices} choices as {pairs} pairs" if pairs > choices else f"{pairs} rows"
        print(f"Wrote {what} to {out}, in the format of TRL's trainers")
        return
    counts = prepare(data, _SOURCE.value, out, _TOKENIZER.value, _MAX_LENGTH.value, truncate)  # type: ignore[arg-type]
    print("\n".join(counts.pop("summary")))
    for warning in counts.pop("warnings"):
        print(f"warning: {warning}")
    if _JSON.value:
        print(json.dumps({name: value for name, value in counts.items() if not isinstance(value, list)}, indent=1))
    labels = {2: "hh", 3: "hht"}.get(len(data.labels or "hh"), "hh")
    ratings = counts.get("schema") == "ultrafeedback"
    name = f"ultrafeedback_reward.py:{labels},np_btl" if ratings else "rows.py:np_btl"
    print(f"Prepared in {out}; train with --config=configs/{name} --config.data.path={out}")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
