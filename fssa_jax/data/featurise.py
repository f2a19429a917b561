"""Computes the features of a data set's texts: given vectors, or features of the texts."""

from pathlib import Path

import numpy as np

from fssa_jax.config import Rows, Styles
from fssa_jax.data.dataset import Split, texts_of
from fssa_jax.data.features import EncoderFeaturiser, Featuriser, Text, TfidfFeaturiser, find_vectors, read_vectors
from fssa_jax.errors import UserError
from fssa_jax.lm.hub import at_hand
from fssa_jax.lm.text_encoder import EmbedSettings


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
        return features_of_texts(data, encode, texts, texts_of(train.table), scratch)
    featuriser = read_vectors(vectors, order, texts)
    return featuriser, _finite(featuriser.transform(texts), data.path)


def features_of_texts(
    data: Rows | Styles, encode: bool, texts: list[Text], known: np.ndarray, scratch: Path | None
) -> tuple[Featuriser, np.ndarray]:
    """Features from a pretrained model or tfidf; `known` are the rows of the training texts."""
    if not encode:
        featuriser: Featuriser = TfidfFeaturiser.fit([texts[i] for i in known], data.components)
        return featuriser, _finite(featuriser.transform(texts), getattr(data, "path", "styles"))
    chosen = data.text_encoder
    # An absolute path: new texts may be embedded later from another working directory.
    name = str(Path(chosen.name).resolve()) if Path(chosen.name).is_dir() else chosen.name
    settings = EmbedSettings(
        name,
        pool=chosen.pool,
        layer=chosen.layer,
        max_tokens=chosen.max_tokens,
        normalise=chosen.normalise,
        dtype=chosen.dtype,
        attention=chosen.attention,
    )
    featuriser = EncoderFeaturiser(settings)
    return featuriser, _finite(featuriser.fit_transform(texts, known, scratch), chosen.name)


def _finite(features: np.ndarray, source: str) -> np.ndarray:
    if not np.isfinite(features).all():
        raise UserError(f"{source}: features are not finite")
    return features
