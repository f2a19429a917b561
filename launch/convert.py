"""Writes a language model as a Hugging Face directory: config.json, tokenizer and safetensors.

  python -m launch.convert --gguf=model.gguf --out=models/mine
  python -m launch.convert --gguf=smollm2 --out=models/smollm2

Quantised weights are written as float32, or as --dtype says. Programs also read GGUF files themselves, as
--config.policy.base=model.gguf.
"""

from pathlib import Path

from absl import flags

from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.lm.base import load_base
from fssa_jax.lm.safetensors import save_params

_GGUF = flags.DEFINE_string("gguf", "", "file to read, or smollm2 for the installed package")
_OUT = flags.DEFINE_string("out", "", "directory to write")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "type of the weights")


def main() -> None:
    """Reads --gguf and writes --out."""
    if not _GGUF.value or not _OUT.value:
        raise UserError("--gguf and --out are needed; see --help")
    base = load_base(_GGUF.value, _DTYPE.value)
    save_params(Path(_OUT.value), base.variables, base.decoder.config, base.directory)
    print(f"Written to {_OUT.value}: a base for --config.policy.base, and a checkpoint for transformers.")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
