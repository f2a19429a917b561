"""Samples responses of a language model to prompts, and writes them as JSONL.

  python -m launch.sample --base=smollm2 --prompts=prompts.txt --n=16 --out=responses.jsonl
  python -m launch.sample --base=smollm2 --prompts=rows.jsonl --instructions=styles.txt --cut --out=responses.jsonl

base: directory or hub name of a checkpoint, a GGUF file, or smollm2 for the installed package. prompts: a .txt file of
one prompt per line, or rows with a column prompt, a text or a list of messages. instructions: the same, with a column
instruction; every prompt is answered under every instruction, as a system message or, with --instruct=user, at the end
of what the user says. The instruction is no part of the prompt that is written.

A row has prompt, instruction, number (of n), response, finish (stop; length, at --max_new; or sentence, cut there),
unfinished, and log_probs, in nats, of each token. Rows are in the order of the prompts. The same command goes on after
a killed run. On several hosts with a shared disk, run it with --coordinator on each: each samples a share.
"""

from pathlib import Path
from typing import Any

from absl import flags

from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.experiment.sample import SampleSettings, items_of, read_instructions, read_prompts, sample
from fssa_jax.lm.base import load_base
from fssa_jax.ops.sampling import Sampling

_BASE = flags.DEFINE_string("base", "", "language model")
_PROMPTS = flags.DEFINE_string("prompts", "", "file of prompts")
_INSTRUCTIONS = flags.DEFINE_string("instructions", "", "file of instructions")
_INSTRUCT = flags.DEFINE_enum("instruct", "system", ["system", "user"], "where an instruction goes")
_OUT = flags.DEFINE_string("out", "", "JSONL file to write")
_N = flags.DEFINE_integer("n", 1, "responses per prompt and instruction", lower_bound=1)
_CUT = flags.DEFINE_bool("cut", False, "end responses that reach --max_new after their last whole sentence")
_LOG_PROBS = flags.DEFINE_bool(
    "log_probs", True, "write the log-probabilities of tokens; they take a third of the time"
)
_SEED = flags.DEFINE_integer("seed", 0, "seed of all responses", 0, 2**32 - 1)
_BATCH = flags.DEFINE_integer("batch", 64, "responses that are written at a time", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "type of the weights and of the computation")
program.define_sampling_flags("1, 1 and 128")
program.define_process_flags()
flags.adopt_module_key_flags(program)


def main() -> None:
    """Samples --n responses to each of --prompts."""
    if not (_BASE.value and _PROMPTS.value and _OUT.value):
        raise UserError("--base, --prompts and --out are needed; see --help")
    out = Path(_OUT.value)
    if out.exists():
        raise UserError(f"{out}: exists; give another --out")
    given: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new": 128} | program.sampling_given()
    sampling = Sampling(given["temperature"], top_p=given["top_p"])
    where: Any = _INSTRUCT.value
    settings = SampleSettings(_N.value, sampling, given["max_new"], _CUT.value, where, _SEED.value, _LOG_PROBS.value)
    instructions = read_instructions(_INSTRUCTIONS.value) if _INSTRUCTIONS.value else []
    items = items_of(read_prompts(_PROMPTS.value), instructions, settings)
    program.join_processes()
    new = sample(load_base(_BASE.value, _DTYPE.value), items, settings, out, _BATCH.value)
    print(f"Wrote {len(items)} responses to {out}, {new} of them new")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
