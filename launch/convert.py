"""Writes a language model as a Hugging Face directory, or what steers one as a small directory of its own.

  python -m launch.convert --gguf=model.gguf --out=models/mine
  python -m launch.convert --gguf=smollm2 --out=models/smollm2
  python -m launch.convert --steering=runs/policy --out=steering/mine

gguf: the directory has config.json, tokenizer and safetensors. Quantised weights are written as float32, or as --dtype
says. Programs also read GGUF files themselves, as --config.policy.base=model.gguf.

steering: the work directory of a policy. What is written has the encoder, the hypernetwork, the featuriser of texts
with its words, and --pairs of responses to ask about, which validation people judged. It has no people and no language
model. launch.chat and launch.steer take it like a work directory.
"""

from pathlib import Path

from absl import flags

from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.experiment.steering import save_steering
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.safetensors import save_params

_GGUF = flags.DEFINE_string("gguf", "", "file to read, or smollm2 for the installed package")
_STEERING = flags.DEFINE_string("steering", "", "work directory of a policy")
_NOTES = flags.DEFINE_string("notes", "", "paragraph for the card of the steering weights")
_EXAMPLES = flags.DEFINE_list("examples", [], "files to put next to the steering weights, such as choices to try")
_PAIRS = flags.DEFINE_integer("pairs", 24, "pairs of responses to keep with the steering weights, to ask about", 0)
_OUT = flags.DEFINE_string("out", "", "directory to write")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "type of the weights")


def main() -> None:
    """Reads --gguf or --steering and writes --out."""
    if bool(_GGUF.value) == bool(_STEERING.value) or not _OUT.value:
        raise UserError("--out and one of --gguf and --steering, not both, are needed; see --help")
    unused = ("dtype",) if _STEERING.value else ("notes", "examples", "pairs")
    if name := next((name for name in unused if flags.FLAGS[name].present), None):
        raise UserError(f"--{name}: has no effect with {'--steering' if _STEERING.value else '--gguf'}; leave it out")
    if _STEERING.value:
        work, examples = Workdir.open(Path(_STEERING.value)), [Path(name) for name in _EXAMPLES.value]
        size = save_steering(work, Path(_OUT.value), _PAIRS.value, notes=_NOTES.value, examples=examples)
        print(f"Written to {_OUT.value}: {size / 1e6:.1f} MB, for --steering of launch.chat.")
        return
    base = load_base(_GGUF.value, _DTYPE.value)
    save_params(Path(_OUT.value), base.variables, base.decoder.config, base.directory)
    print(f"Written to {_OUT.value}: a base for --config.policy.base, and a checkpoint for transformers.")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
