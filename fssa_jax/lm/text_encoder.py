"""Embeddings of texts by a pretrained model: in batches of similar length, over all devices."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fssa_jax.errors import UserError
from fssa_jax.files import DIGESTS
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.hub import find_checkpoint
from fssa_jax.lm.messages import readable
from fssa_jax.lm.safetensors import check_checkpoint, load_params
from fssa_jax.lm.sentence_modules import read_sentence_modules
from fssa_jax.lm.tensor_files import weight_files
from fssa_jax.lm.tokenizer import check_vocabulary, load_tokenizer
from fssa_jax.models.bert import BertConfig, BertEncoder, mean_pool, pool_tokens, unit
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.padding import batch_rows, filled_rows, length_batches
from fssa_jax.progress import finished
from fssa_jax.types import PyTree

Text = tuple[str, str]  # (prompt, response)
Pool = Literal["mean", "response", "last"]

_TYPICAL = 32  # tokens of a short text, to estimate how many texts are enough for batches of similar length
_BATCH_TOKENS = {"cpu": 1024}  # per device and call; other platforms:
_MANY_TOKENS = 16_384


@dataclasses.dataclass(frozen=True)
class EmbedSettings:
    """How a text becomes a vector.

    Attributes:
      encoder: directory or hub name.
      pool: "mean" over all tokens; for decoders also the mean over the "response", or the "last" token.
      layer: number of blocks of a decoder that are run; 0 for all blocks and the final norm.
      max_tokens: longer texts are cut; 0 for the model's limit.
      normalise: scale vectors to unit length.
      dtype: of the computation.
      attention: implementation of a decoder's attention; see `attention.attention`.
      date: what the chat template of a decoder gets for today's date; see `ChatTokenizer`.
    """

    encoder: str
    pool: Pool = "mean"
    layer: int = 0
    max_tokens: int = 0
    normalise: bool = True
    dtype: str = "float32"
    attention: str = "auto"
    date: str = ""


class TextEncoder:
    """A pretrained model that embeds texts.

    For a sentence encoder a text is the prompt, a blank line, and the response; pooling and default prompt are those of
    the checkpoint. For a decoder it is the conversation in the chat template, up to the last token of the response.
    """

    def __init__(self, settings: EmbedSettings, variables: PyTree = None):
        """`variables` are those of the model if they are in memory already, in the dtype of the settings."""
        check_checkpoint(find_checkpoint(settings.encoder))
        self._sentence = read_sentence_modules(find_checkpoint(settings.encoder))
        self.directory = self._sentence.transformer
        config = read_config(self.directory)
        self.tokenizer = load_tokenizer(self.directory, settings.date)
        self.settings = settings = dataclasses.replace(
            settings, date=self.tokenizer.date if self.tokenizer.dated else settings.date
        )
        check_vocabulary(self.tokenizer, config.vocabulary, self.directory)
        self._bert = isinstance(config, BertConfig)
        if not self._bert and (self.directory / "modules.json").is_file():
            raise UserError(f"{settings.encoder}: a sentence encoder made of a decoder (modules.json) is not supported")
        if self._bert and (settings.pool != "mean" or settings.layer):
            raise UserError(f"{settings.encoder}: a sentence encoder has its own pooling; give pool 'mean' and layer 0")
        if not self._bert and not 0 <= settings.layer <= config.layers:
            raise UserError(f"{settings.encoder}: layer {settings.layer} is not one of its {config.layers} layers")
        dtype = jnp.dtype(settings.dtype)
        self.model: Any = (
            BertEncoder(config, dtype)
            if isinstance(config, BertConfig)
            else Decoder(config, dtype, implementation=settings.attention)  # type: ignore[arg-type]
        )
        self.width = config.width * (len(self._sentence.pools) if self._bert else 1)
        self.limit = min(settings.max_tokens or self._sentence.limit or config.max_length, config.max_length)
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("batch",), axis_types=(AxisType.Auto,))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._shared = NamedSharding(mesh, PartitionSpec("batch"))
        self.devices = len(devices)
        self._tokens = _BATCH_TOKENS.get(devices[0].platform, _MANY_TOKENS) * self.devices
        # Texts to embed at a time: about 32 batches, so that lengths in a batch are similar and most batches are full.
        self.together = 32 * self._tokens // _TYPICAL
        # Matrix products of half-precision models run in half precision; float32 stays float32.
        if variables is None:
            variables = load_params(self.directory, config, dtype, lambda *_: everywhere)
        else:
            variables = jax.device_put(variables, everywhere)
        self._run = partial(jax.jit(self._embed), variables)

    def fingerprint(self) -> str:
        """Fingerprint of the settings and the weights: equal fingerprints give equal vectors."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.settings) | {"encoder": ""}).encode())
        digest.update(str(self.limit).encode())
        plain = [path for path in self.directory.rglob("*") if path.suffix in (".json", ".jinja") and path.is_file()]
        plain = [path for path in plain if path.name != DIGESTS]
        for file in sorted([*weight_files(self.directory), *plain]):
            digest.update(f"{file.relative_to(self.directory)} {file.stat().st_size}".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    def tokens(self, texts: Sequence[Text]) -> tuple[list[list[int]], list[int], list[int]]:
        """Token ids, indices of the texts that were cut to the limit, and the start of each response.

        Texts of a sentence encoder are cut at the end, as in its own library, and count as all response. Of
        conversations the beginning of what the user wrote is left out, so that the response is kept.
        """
        limit = self.limit
        if self._bert:
            whole = [f"{readable(prompt)}\n\n{response}" if prompt else response for prompt, response in texts]
            whole = [self._sentence.prompt + (text.lower() if self._sentence.lower else text) for text in whole]
            ids = self.tokenizer.raw(whole, truncation=True, max_length=limit + 1)["input_ids"]
            # The last token closes every text.
            kept = [[*i[: limit - 1], i[-1]] if len(i) > limit else i for i in ids]
            return kept, _longer(ids, limit), [0] * len(ids)
        rows = [self.tokenizer.encode(prompt, response, end_of_turn=False) for prompt, response in texts]
        short = [row.cut(limit) for row in rows]
        return [row.tokens for row in short], _longer([row.tokens for row in rows], limit), [row.start for row in short]

    def embed(self, texts: Sequence[Text]) -> np.ndarray:
        """(texts, width) float32."""
        return self.embed_and_cut(texts)[0]

    def embed_and_cut(self, texts: Sequence[Text]) -> tuple[np.ndarray, list[int]]:
        """`embed`, and the indices of the texts that were cut."""
        ids, cut, starts = self.tokens(texts)
        return self._embed_tokens(ids, starts), cut

    def _embed_tokens(self, ids: list[list[int]], starts: list[int]) -> np.ndarray:
        out = np.zeros((len(ids), self.width), np.float32)
        pending: list[tuple[np.ndarray, jax.Array]] = []
        for size, rows in length_batches([len(i) for i in ids], self._tokens, self.devices, self.limit):
            number = filled_rows(len(rows), batch_rows(size, self._tokens, self.devices), self.devices)
            tokens, begins = np.zeros((number, size), np.int32), np.zeros(number, np.int32)
            lengths = np.ones(number, np.int32)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row])] = ids[row]
                begins[place], lengths[place] = starts[row], max(len(ids[row]), 1)
            vectors = self._run(*(jax.device_put(x, self._shared) for x in (tokens, begins, lengths)))
            pending.append((rows, vectors))
            if len(pending) > 2:  # the device works while the host reads finished batches
                done, vectors = pending.pop(0)
                out[done] = np.asarray(vectors)[: len(done)]
                finished()
        for done, vectors in pending:
            out[done] = np.asarray(vectors)[: len(done)]
        return out

    def _embed(self, variables: PyTree, tokens: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array:
        s = self.settings
        if self._bert:
            vectors = pool_tokens(self.model.apply(variables, tokens, lengths), lengths, self._sentence.pools)
            return unit(vectors) if s.normalise else vectors
        hidden, _ = self.model.apply(variables, tokens, until=s.layer or None, method="hidden")
        begin = {"mean": None, "response": starts, "last": lengths - 1}[s.pool]
        return mean_pool(hidden, lengths, s.normalise, begin)


def _longer(ids: list[list[int]], limit: int) -> list[int]:
    return [number for number, row in enumerate(ids) if len(row) > limit]
