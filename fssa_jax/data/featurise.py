"""Computes the features of a data set's texts: given vectors, or features of the texts."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from fssa_jax.config import Chat, Rows, Styles
from fssa_jax.data.dataset import Split, texts_of
from fssa_jax.data.features import EncoderFeaturiser, Featuriser, Text, TfidfFeaturiser, find_vectors, read_vectors
from fssa_jax.data.manner import MannerFeaturiser
from fssa_jax.data.quantities import QuantityFeaturiser
from fssa_jax.errors import UserError
from fssa_jax.lm.hub import at_hand, is_here
from fssa_jax.lm.text_encoder import EmbedSettings

_log = logging.getLogger(__name__)


def features_of_rows(
    data: Rows, texts: list[Text], train: Split, scratch: Path | None
) -> tuple[Featuriser, np.ndarray]:
    """Features of rows: given vectors, or features of the texts."""
    vectors, order = data.vectors, data.texts
    if data.features in ("auto", "given") and not vectors:
        vectors, order = find_vectors(data.path)
    if data.features == "given" and not vectors:
        raise UserError(f"{data.path}: no .npy file next to it, or several; name one with --config.data.vectors=FILE")
    if not vectors or data.features not in ("auto", "given"):
        encode = data.features == "encoder" or (data.features == "auto" and at_hand(data.text_encoder.name))
        known = texts_of(train.table)
        return features_of_texts(data, encode, texts, known[known < len(texts)], scratch)  # thresholds are no texts
    _log.info("features: the vectors in %s", vectors)
    featuriser = read_vectors(vectors, order, texts)
    return featuriser, _checked(featuriser.transform(texts), texts, data.path)


def features_of_texts(
    data: Rows | Styles | Chat, encode: bool, texts: list[Text], known: np.ndarray, scratch: Path | None
) -> tuple[Featuriser, np.ndarray]:
    """Features from a pretrained model or tfidf; `known` are the rows of the training texts."""
    if not encode:
        _log.info("features: TF-IDF of %d texts, fitted to the %d of training", len(texts), len(known))
        featuriser: Featuriser = TfidfFeaturiser.fit([texts[i] for i in known], data.components)
        return _finished(data, featuriser, featuriser.transform(texts), texts, known)
    chosen = data.text_encoder
    # An absolute path: new texts may be embedded later from another working directory.
    name = str(Path(chosen.name).resolve()) if is_here(chosen.name) else chosen.name
    settings = EmbedSettings(
        name,
        pool=chosen.pool,
        layer=chosen.layer,
        max_tokens=chosen.max_tokens,
        normalise=chosen.normalise,
        dtype=chosen.dtype,
        attention=chosen.attention,
    )
    _log.info("features: embeddings of %d texts by %s", len(texts), chosen.name)
    featuriser = EncoderFeaturiser(settings)
    return _finished(data, featuriser, featuriser.fit_transform(texts, known, scratch), texts, known)


def _finished(
    data: Rows | Styles | Chat, featuriser: Featuriser, features: np.ndarray, texts: list[Text], known: np.ndarray
) -> tuple[Featuriser, np.ndarray]:
    """With the columns of manner and of quantities, and checked."""
    if data.manner:
        wider = MannerFeaturiser.of(featuriser, features, texts, known)
        if isinstance(wider, MannerFeaturiser):
            featuriser, features = wider, wider.extended(features, texts)
    if isinstance(data, Rows) and data.quantities:
        wider = QuantityFeaturiser.of(featuriser, features, texts, known)
        if isinstance(wider, QuantityFeaturiser):
            _log.info("features: the numbers of %s as well", ", ".join(map(repr, wider.units)))
            featuriser, features = wider, wider.extended(features, texts)
    return featuriser, _checked(features, texts, getattr(data, "path", type(data).__name__.lower()))


def _checked(features: np.ndarray, texts: list[Text], source: str) -> np.ndarray:
    """Raises `UserError` for features that are not finite, and warns of different texts with the same features."""
    if not np.isfinite(features).all():
        raise UserError(f"{source}: features are not finite")
    first: dict[bytes, Text] = {}
    same = 0
    for text, row in zip(texts, features, strict=True):
        # A prompt that features leave out does not make two texts.
        same += first.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), text)[1] != text[1]
    if same:
        _log.warning(
            "%s: features cannot tell %d of %d texts from others; learnt texts (config.model.learn_texts=yes) or a "
            "text encoder can",
            source,
            same,
            len(texts),
        )
    return features
