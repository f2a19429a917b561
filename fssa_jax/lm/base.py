"""The language model that is steered: loaded or made, its tokens of all texts, and its log-probabilities of them."""

import dataclasses
import hashlib
import json
import logging
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import NewBase, PolicyModelConfig
from fssa_jax.data.dataset import Dataset
from fssa_jax.data.features import Text
from fssa_jax.data.token_table import TokenTable, encode_table
from fssa_jax.errors import UserError
from fssa_jax.files import write_bytes
from fssa_jax.lm.hf_config import read_config, to_hugging_face
from fssa_jax.lm.hub import find_checkpoint
from fssa_jax.lm.safetensors import load_params, save_params
from fssa_jax.lm.tokenizer import check_vocabulary, load_tokenizer
from fssa_jax.models.decoder import Decoder, DecoderConfig
from fssa_jax.ops.padding import batch_rows, filled_rows, length_batches
from fssa_jax.tasks.policy import PolicyData, text_log_probs
from fssa_jax.types import ChoiceTable, PyTree
from fssa_jax.watchdog import finished

_log = logging.getLogger(__name__)

_BATCH_TOKENS = {"cpu": 8192}  # of a device at a time; elsewhere:
_MANY_TOKENS = 65_536

# Turns as most chat models write them, and nothing else.
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")


@dataclasses.dataclass
class Base:
    """A decoder with its parameters and its tokenizer. `fingerprint` tells one base from another."""

    directory: Path
    decoder: Decoder
    variables: PyTree
    tokenizer: Any
    fingerprint: str

    @cached_property
    def text_log_probs(self) -> Callable[..., jax.Array]:
        """`step.text_log_probs` after its decoder, compiled once for each shape."""
        return jax.jit(partial(text_log_probs, self.decoder))


def load_base(settings: PolicyModelConfig) -> Base:
    """Loads `settings.base`.

    Raises:
      UserError: no such checkpoint, one that is damaged or no decoder, or a tokenizer that does not fit it.
    """
    directory = find_checkpoint(settings.base)
    if (directory / "checkpoints").is_dir() and (directory / "model").is_dir():
        raise UserError(f"{settings.base}: a work directory; its language model is inside: give {directory / 'model'}")
    config = read_config(directory)
    if not isinstance(config, DecoderConfig):
        raise UserError(f"{settings.base}: a sentence encoder cannot generate; give a language model")
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, config.vocabulary, directory)
    dtype = jnp.dtype(settings.dtype)
    decoder = Decoder(config, dtype, settings.remat, settings.attention)  # type: ignore[arg-type]
    return Base(directory, decoder, load_params(directory, config, dtype), tokenizer, fingerprint(directory))


def fingerprint(directory: Path) -> str:
    """Of weights, shape and tokenizer of a checkpoint."""
    digest = hashlib.sha256()
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for file in sorted(f for f in directory.iterdir() if f.name in names or f.suffix == ".safetensors"):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def new_base(new: NewBase, texts: Sequence[Text], directory: Path, seed: int = 0) -> None:
    """Makes a checkpoint directory of a new model: a byte-level BPE tokenizer of the texts, and random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=new.vocabulary,
        special_tokens=list(_SPECIAL),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator((part for text in texts for part in text), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    head_dim = new.width // new.heads
    config = DecoderConfig(
        vocabulary=new.vocabulary,
        width=new.width,
        layers=new.layers,
        heads=new.heads,
        groups=new.groups,
        head_dim=head_dim,
        mlp_width=new.mlp_width,
        max_length=new.max_length,
        tied=True,
    )
    variables: Any = jax.jit(Decoder(config).init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        tokenizer.save_pretrained(source)
        (source / "config.json").write_text(json.dumps(to_hugging_face(config), indent=1), encoding="utf-8")
        save_params(directory, variables, config, source)


def tokenise(base: Base, settings: PolicyModelConfig, texts: Sequence[Text]) -> TokenTable:
    """The tokens of all texts, those that are too long left out or cut as the settings say.

    Raises:
      UserError: the settings allow more tokens than the model has positions.
    """
    limit = base.decoder.config.max_length
    if settings.max_length > limit:
        raise UserError(
            f"config.policy.max_length: {settings.max_length} is more than the {limit} positions of the model"
        )
    return encode_table(base.tokenizer, texts, max_length=settings.max_length, truncate=settings.truncate)  # type: ignore[arg-type]


def only_with_tokens(dataset: Dataset, tokens: TokenTable) -> None:
    """Leaves out the choices about texts that have no tokens, and counts them in the data set's report."""
    fits = tokens.lengths > 0
    if fits.all():
        return
    total = 0
    for split in dataset.splits.values():
        split.table, lost = table_with_tokens(split.table, tokens)
        total += lost
    dataset.report.setdefault("left_out_rows", {})["of texts that are too long"] = total
    _log.warning("%d choices about texts that are too long are left out", total)


def table_with_tokens(table: ChoiceTable, tokens: TokenTable) -> tuple[ChoiceTable, int]:
    """The choices about texts that have tokens, and how many others there were.

    Raises:
      UserError: nobody has a context and a target left.
    """
    fits, table = tokens.lengths > 0, jax.tree.map(np.array, table)
    good = np.asarray(table.mask) & fits[table.chosen] & fits[table.rejected]
    order = np.argsort(~good, axis=2, kind="stable")
    chosen, rejected = (np.take_along_axis(side, order, axis=2) for side in (table.chosen, table.rejected))
    count = good.sum(2).astype(np.int32)
    if not (count > 0).all(1).any():
        raise UserError(
            "config.policy.max_length: no choice is short enough; raise it, or give config.policy.truncate=left"
        )
    return ChoiceTable(chosen, rejected, count, table.group), int(table.count.sum() - good.sum())


def device_tokens(tokens: TokenTable) -> PolicyData:
    """The token table as a step takes it."""
    return PolicyData(*(jnp.asarray(x) for x in (tokens.tokens, tokens.starts, tokens.ends)))


def reference_log_probs(base: Base, tokens: TokenTable, variables: PyTree = None) -> np.ndarray:
    """(texts,) log π_ref(response | prompt) in nats, 0 for texts without tokens; in batches of like length.

    `variables` are of the same decoder, where they are not those of the base itself.
    """
    variables = base.variables if variables is None else variables
    budget = _BATCH_TOKENS.get(jax.devices()[0].platform, _MANY_TOKENS)
    out = np.zeros(len(tokens.lengths), np.float32)
    rows = np.flatnonzero(tokens.lengths)

    width = tokens.tokens.shape[1]
    for size, batch in length_batches(tokens.lengths[rows].tolist(), budget, limit=width):
        ids = np.resize(rows[batch], filled_rows(len(batch), batch_rows(size, budget)))
        part = PolicyData(tokens.tokens[ids, :size], tokens.starts[ids], tokens.ends[ids])
        out[rows[batch]] = np.asarray(base.text_log_probs(variables, part, jnp.arange(len(ids))))[: len(batch)]
        finished()
    return out


def stored_reference(base: Base, tokens: TokenTable, path: Path) -> np.ndarray:
    """`reference_log_probs`, kept in a file that knows of which model and which texts they are.

    Raises:
      UserError: the file is of another model or of other texts.
    """
    stamp = {"base": base.fingerprint, "texts": _digest(tokens)}
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                before, values = json.loads(str(arrays["stamp"])), arrays["log_probs"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged ({error}); remove it to have it made again") from error
        for name, what in (("base", "another language model"), ("texts", "other texts or another tokenizer")):
            if before.get(name) != stamp[name]:
                raise UserError(f"{path}: log-probabilities of {what}; give the base they are of, or another --workdir")
        return values
    values = reference_log_probs(base, tokens)
    if not np.isfinite(values).all():
        raise UserError(f"{base.directory}: the log-probability of a text is not finite; the checkpoint is damaged")
    with tempfile.TemporaryFile() as stream:
        np.savez(stream, stamp=json.dumps(stamp), log_probs=values)
        stream.seek(0)
        write_bytes(path, stream.read())
    return values


def _digest(tokens: TokenTable) -> str:
    digest = hashlib.sha256()
    for array in (tokens.tokens, tokens.starts, tokens.ends):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
