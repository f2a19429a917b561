"""Features of texts: given vectors, embeddings of a pretrained model, or TF-IDF and truncated SVD.

Any object with `transform(texts) -> (n, d) float32` and `save(directory)` can be the featuriser of a `Dataset`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fssa_jax.data.embedding_store import cut_texts, embed_to
from fssa_jax.data.records import read_lines
from fssa_jax.errors import UserError
from fssa_jax.lm.messages import join_messages
from fssa_jax.lm.text_encoder import EmbedSettings, Text, TextEncoder
from fssa_jax.types import PyTree

# Scripts without spaces between words: Thai to Myanmar, Khmer, kana, Chinese characters and their extensions.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Words, every character of such scripts, and every other visible one: emoji and punctuation carry style.
_TOKENS = rf"(?u)[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]"


@runtime_checkable
class Featuriser(Protocol):
    """Turns texts into features, in training and, for new texts, when the model is used."""

    def transform(self, texts: list[Text]) -> np.ndarray: ...

    def save(self, directory: Path) -> None: ...


class TfidfFeaturiser:
    """TF-IDF over words and symbols of the response, truncated SVD, and the log of its length.

    Every column is standardised on the training texts. The prompt is left out: it is the same for both responses of a
    choice, and a linear model of words cannot relate prompt and response.
    """

    def __init__(self, vectoriser: Any, components: np.ndarray, mean: np.ndarray, scale: np.ndarray):
        self._vectoriser = vectoriser
        self._components = components
        self._mean = mean
        self._scale = scale

    @classmethod
    def fit(cls, texts: list[Text], components: int, seed: int = 0) -> "TfidfFeaturiser":
        """Learns the vocabulary and the `components` leading directions from training texts."""
        vectoriser = _vectoriser()
        try:
            matrix: Any = vectoriser.fit_transform([response for _, response in texts])
            rank = min(components, *(n - 1 for n in matrix.shape))
        except ValueError:  # no word occurs in two texts
            rank = 0
        if rank < 1:
            raise UserError(
                "config.data.features: no word occurs in two of the training texts, so TF-IDF cannot describe them; "
                "give more texts, vectors (config.data.vectors), or a text encoder (config.data.features=encoder)"
            )
        from sklearn.decomposition import TruncatedSVD  # imported here because it takes a second

        svd = TruncatedSVD(rank, random_state=seed).fit(matrix)
        directions = np.asarray(svd.components_, np.float32)
        raw = cls(vectoriser, directions, np.zeros(rank + 1), np.ones(rank + 1))
        features = raw.transform(texts)
        raw._mean = features.mean(0)
        # Directions without variance in training must not dominate the features of new texts.
        spread = features.std(0)
        raw._scale = np.maximum(spread, 0.1 * spread[:rank].max() + 1e-6)
        return raw

    def transform(self, texts: list[Text]) -> np.ndarray:
        """Features (n, components + 1) of texts, including new ones."""
        responses = [response for _, response in texts]
        projected = self._vectoriser.transform(responses) @ self._components.T
        tokens = self._vectoriser.build_tokenizer()
        length = np.log1p([len(tokens(response)) for response in responses])
        return ((np.column_stack([projected, length]) - self._mean) / self._scale).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Writes plain JSON and arrays; nothing is pickled."""
        vocabulary = sorted(self._vectoriser.vocabulary_, key=self._vectoriser.vocabulary_.__getitem__)
        (directory / "tfidf.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        np.savez(
            directory / "tfidf.npz",
            idf=self._vectoriser.idf_,
            components=self._components,
            mean=self._mean,
            scale=self._scale,
        )

    @classmethod
    def load(cls, directory: Path) -> "TfidfFeaturiser":
        vocabulary = json.loads((directory / "tfidf.json").read_text(encoding="utf-8"))
        with np.load(directory / "tfidf.npz", allow_pickle=False) as arrays:
            vectoriser = _vectoriser(vocabulary)
            vectoriser.idf_ = arrays["idf"]
            return cls(vectoriser, arrays["components"], arrays["mean"], arrays["scale"])


def _vectoriser(vocabulary: list[str] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        token_pattern=_TOKENS,
        sublinear_tf=True,
        ngram_range=(1, 2),
        min_df=1 if vocabulary else 2,
        # Not normalised: unknown words in a text do not change the features of its known words.
        norm=None,  # type: ignore[arg-type]
        max_features=50_000,
        vocabulary=vocabulary,
    )


class EncoderFeaturiser:
    """Vectors of a pretrained model, centred on the training texts and scaled to unit variance by one factor.

    One factor for all directions preserves the proportions of distances; the model learns how to weight directions.
    """

    def __init__(self, settings: EmbedSettings, mean: np.ndarray | None = None, scale: float = 1.0):
        self._settings = settings
        self._encoder: TextEncoder | None = None
        self._variables: PyTree = None
        self._mean = mean
        self._scale = scale
        self.cut: list[int] = []  # texts of `fit_transform` that were too long for the model

    def fit_transform(self, texts: list[Text], train: np.ndarray, scratch: Path | None) -> np.ndarray:
        """Features of all texts; `train` are the rows of the training texts.

        With `scratch` the work is resumable: embeddings that a killed run wrote there are reused.
        """
        encoder = self._model()
        if scratch:
            vectors, self.cut = np.array(embed_to(encoder, texts, scratch)), cut_texts(scratch)
        else:
            vectors, self.cut = encoder.embed_and_cut(texts)
        self._mean = vectors[train].mean(0)
        self._scale = float(vectors[train].std(0).mean()) or 1.0
        return ((vectors - self._mean) / self._scale).astype(np.float32)

    def transform(self, texts: list[Text]) -> np.ndarray:
        """Features (n, d) of texts, including new ones."""
        return ((self._model().embed(texts) - self._mean) / self._scale).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Writes the settings and the two moments, not the model."""
        settings = self._settings if self._encoder is None else self._encoder.settings
        (directory / "encoder.json").write_text(json.dumps(dataclasses.asdict(settings)), encoding="utf-8")
        np.savez(directory / "encoder.npz", mean=np.asarray(self._mean), scale=self._scale)

    @classmethod
    def load(cls, directory: Path) -> "EncoderFeaturiser":
        settings = EmbedSettings(**json.loads((directory / "encoder.json").read_text(encoding="utf-8")))
        with np.load(directory / "encoder.npz", allow_pickle=False) as arrays:
            return cls(settings, arrays["mean"], float(arrays["scale"]))

    def share(self, name: str, directory: Path, dtype: str, variables: PyTree = None) -> None:
        """Embeds with a language model that is already in memory, if it is the one of this featuriser.

        Args:
          name: name of the model when the features were saved.
          directory: where it is now.
          dtype: type of its parameters.
          variables: its parameters; None to load them.
        """
        if name == self._settings.encoder:
            self._settings = dataclasses.replace(self._settings, encoder=str(directory))
            self._variables = variables if dtype == self._settings.dtype else None
            self._encoder = None  # drop a copy that was loaded before

    def _model(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = TextEncoder(self._settings, self._variables)
        return self._encoder


class GivenFeaturiser:
    """Vectors that came with the rows; known texts only."""

    def __init__(self, texts: list[Text], vectors: np.ndarray, source: str):
        self._index = {text: i for i, text in enumerate(texts)}
        self._vectors = vectors
        self._source = source

    def transform(self, texts: list[Text]) -> np.ndarray:
        missing = [text for text in texts if text not in self._index]
        if missing:
            raise UserError(
                f"{self._source}: no vector for {len(missing)} texts, the first is {missing[0][1][:60]!r}; "
                "add their vectors, or train with --config.data.features=tfidf"
            )
        return self._vectors[[self._index[text] for text in texts]].astype(np.float32)

    def save(self, directory: Path) -> None:
        """Writes nothing: the vectors of all known texts are saved with the data."""


class NumberFeaturiser:
    """For responses that are numbers: the feature is the number."""

    def transform(self, texts: list[tuple[str, str]]) -> np.ndarray:
        try:
            return np.array([[float(response)] for _, response in texts], np.float32).reshape(-1, 1)
        except ValueError as error:
            raise UserError(f"responses of the synthetic task are numbers in [0, 1] ({error})") from error

    def save(self, directory: Path) -> None:
        """Writes nothing."""


def read_vectors(vectors: str, texts: str, known: list[Text]) -> GivenFeaturiser:
    """Vectors from a .npy file; row i belongs to line i of the file `texts`, or to known[i] without such a file.

    Raises:
      UserError: unreadable, wrong length, wrong shape, not finite.
    """
    try:
        array = np.load(vectors, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header surfaces as many kinds
        raise UserError(f"{vectors}: not a readable .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{vectors}: an archive of arrays; save one array with numpy.save")
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise UserError(f"{vectors}: must be a (texts, d) array of numbers, got {array.dtype} {array.shape}")
    order = known
    if texts:
        order = []
        for place, line in read_lines(texts):
            try:
                text = json.loads(line)
            except (ValueError, RecursionError):
                text = None
            if not (isinstance(text, list) and len(text) == 2 and isinstance(text[1], str)):
                raise UserError(f"{place}: must be a JSON list [prompt, response] of two strings")
            prompt = [{"role": "user", "content": text[0]}] if isinstance(text[0], str) else text[0]
            if not isinstance(prompt, list):
                raise UserError(f"{place}: must be a JSON list [prompt, response] of two strings")
            order.append((join_messages(prompt, place), text[1]))
    if len(array) != len(order):
        what = texts or "the distinct texts of the rows, in order of appearance"
        raise UserError(f"{vectors}: {len(array)} rows, but {what} has {len(order)}; write one vector per text")
    with np.errstate(over="ignore", invalid="ignore"):
        bad = np.flatnonzero(~np.isfinite(np.asarray(array, np.float32)).all(axis=1))
    if len(bad):
        raise UserError(f"{vectors}: row {bad[0]} is not finite (and {len(bad) - 1} more); fix the vectors")
    return GivenFeaturiser(order, array, vectors)


def find_vectors(path: str) -> tuple[str, str]:
    """The .npy and the texts file next to rows X.jsonl(.gz|…): X.*.npy or X.npy, and X.texts.jsonl(.gz).

    ("", "") if there is no array, or more than one.
    """
    file = Path(path)
    if not file.is_file():
        return "", ""
    stem = file.name.split(".")[0]
    arrays = sorted(file.parent.glob(f"{stem}.npy")) + sorted(file.parent.glob(f"{stem}.*.npy"))
    if len(arrays) != 1:
        return "", ""
    texts = sorted(file.parent.glob(f"{stem}.texts.jsonl*"))
    return str(arrays[0]), str(texts[0]) if texts else ""
