"""A language model: a decoder with its parameters and its tokenizer, loaded or created."""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fssa_jax.errors import UserError
from fssa_jax.files import DIGESTS
from fssa_jax.lm.hf_config import read_config, to_hugging_face
from fssa_jax.lm.hub import find_checkpoint, is_here
from fssa_jax.lm.peft import SETTINGS, Lora, is_lora, merge_lora, read_lora
from fssa_jax.lm.safetensors import check_checkpoint, load_params, save_params, with_own_head
from fssa_jax.lm.tensor_files import weight_files
from fssa_jax.lm.tokenizer import ChatTokenizer, check_vocabulary, load_tokenizer
from fssa_jax.models.decoder import Decoder, DecoderConfig, Remat
from fssa_jax.ops.attention import Implementation
from fssa_jax.types import PyTree

# A minimal chat template: the turns and nothing else.
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_REMEDY = f"set base_model_name_or_path in its {SETTINGS}, and remove its {DIGESTS} if there is one"
_SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


@dataclasses.dataclass
class Base:
    """A decoder with its parameters and its tokenizer. `fingerprint` identifies it.

    With a `lora`, that is already merged into the parameters; `directory` is that of the checkpoint below.
    """

    directory: Path
    decoder: Decoder
    variables: PyTree
    tokenizer: ChatTokenizer
    fingerprint: str
    lora: Lora | None = None


def load_base(
    name: str,
    dtype: str = "float32",
    remat: Remat = "none",
    implementation: Implementation = "auto",
    date: str = "",
    under: str = "",
) -> Base:
    """Loads a language model.

    Args:
      name: directory or hub name of a checkpoint; or the directory of a LoRA in the format of PEFT, which is merged
        into the base that it names. Tokenizer and chat template are those of that base.
      dtype: of parameters and computation.
      remat, implementation: see `Decoder`.
      date: what the chat template gets for today's date; see `ChatTokenizer`.
      under: current directory or hub name of the base of a LoRA, if it is not where the LoRA says.

    Raises:
      UserError: the checkpoint does not exist, is damaged or is not a decoder, or its tokenizer does not fit.
    """
    directory = Path(name)
    if is_lora(directory):
        lora = read_lora(directory)
        if not under and not lora.base:
            raise UserError(f"{name}: a LoRA that names no base; {_REMEDY}")
        near = directory / lora.base
        below = under or (str(near) if lora.base.startswith(".") and near.is_dir() else lora.base)
        if is_lora(Path(below)):
            raise UserError(f"{name}: its base {below} is a LoRA too; give the model below that")
        if Path(below).is_absolute() and not is_here(below):
            raise UserError(f"{name}: a LoRA of {below}, which is not there; {_REMEDY}")
        base = load_base(below, dtype, remat, implementation, date)
        variables = merge_lora(base.variables, lora, base.decoder.config, directory)
        mark = hashlib.sha256(f"{base.fingerprint} {lora.fingerprint}".encode()).hexdigest()
        return dataclasses.replace(base, variables=variables, fingerprint=mark, lora=lora)
    directory = find_checkpoint(name)
    check_checkpoint(directory)
    if (directory / "checkpoints").is_dir() and (directory / "model").is_dir():
        raise UserError(f"{name}: a work directory, not a checkpoint; give {directory / 'model'}")
    config = read_config(directory)
    if not isinstance(config, DecoderConfig):
        raise UserError(f"{name}: a sentence encoder cannot generate; give a language model")
    config = with_own_head(directory, config)
    tokenizer = load_tokenizer(directory, date)
    check_vocabulary(tokenizer, config.vocabulary, directory)
    decoder = Decoder(config, jnp.dtype(dtype), remat, implementation)
    variables = load_params(directory, config, jnp.dtype(dtype))
    return Base(directory, decoder, variables, tokenizer, fingerprint(directory))


def fingerprint(directory: Path) -> str:
    """Fingerprint of the weights, shape and tokenizer of a checkpoint."""
    digest = hashlib.sha256()
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for file in sorted(
        [*weight_files(directory), *(directory / name for name in names if (directory / name).is_file())]
    ):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def new_base(config: DecoderConfig, texts: Iterable[str], directory: Path, seed: int = 0) -> None:
    """Writes the checkpoint of a new model: a byte-level BPE tokenizer trained on the texts, and random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(_SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    variables: Any = jax.jit(Decoder(config).init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        tokenizer.save_pretrained(source)
        (source / "config.json").write_text(json.dumps(to_hugging_face(config), indent=1), encoding="utf-8")
        save_params(directory, variables, config, source)
