"""Where choices come from: rows of people's choices, UltraFeedback's ratings, or a benchmark of our own."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import group, number, positive


@dataclasses.dataclass
class TextEncoder:
    """The pretrained model whose hidden states are the features of texts; see lm/text_encoder.py."""

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Directory or hub name."""
    pool: Literal["mean", "response", "last"] = "mean"
    """Over all tokens; of a decoder also over those of the response, or the last one."""
    layer: int = number(0, least=0)
    """Of a decoder: the number of blocks that are run; 0 for all."""
    max_tokens: int = number(0, least=0)
    """Longer texts are cut; 0 for the limit of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and computation; the vectors are float32."""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """Implementation of a decoder's attention: cudnn on GPUs in bfloat16, splash on TPUs."""
    normalise: bool = True
    """Vectors of unit length."""


@dataclasses.dataclass
class _Source:
    split_seed: int = number(0, least=0)
    """Of the splits, the pools, and what a benchmark draws."""


@dataclasses.dataclass
class _Texts(_Source):
    features: Literal["auto", "given", "encoder", "tfidf"] = "auto"
    """`given`: vectors; `encoder`: see `text_encoder`; `tfidf`: TF-IDF and truncated SVD. `auto`: vectors next to the
    rows if there are any, else a text encoder that is on this machine, else tfidf; of styles tfidf."""
    components: int = positive(64)
    """Of the truncated SVD of tfidf."""
    text_encoder: TextEncoder = group(TextEncoder)
    """The pretrained model of `encoder`."""


@dataclasses.dataclass
class Rows(_Texts):
    """A file of people's choices, a prepared directory, or a `datasets` directory or hub name; see data/rows.py."""

    path: str = ""
    """File, directory or hub name."""
    on_error: Literal["raise", "skip"] = "raise"
    """A bad row is an error, or is counted and listed."""
    groups: tuple[str, ...] = ()
    """Only the users of these groups; () for all."""
    vectors: str = ""
    """A .npy file with one row per text; default: next to the rows."""
    texts: str = ""
    """A .jsonl(.gz) file of [prompt, response] in the order of `vectors`."""
    min_context: int = number(1, least=0)
    """Users with fewer context rows are left out, by name."""
    min_targets: int = number(1, least=0)
    """Users with fewer target rows are left out, by name."""
    max_rows: int = positive(64)
    """Per user and pool; more are left out at random, and counted."""
    hold_out_items: bool = False
    """Train only on rows whose `split_item` is train."""


@dataclasses.dataclass
class UltraFeedback(Rows):
    """Ratings of completions by aspect: each aspect is a group of users (arXiv 2310.01377)."""

    labels: tuple[str, ...] = ()
    """The aspects that are users; () for those of a prepared directory, else helpfulness and honesty."""
    conflicting: float = number(1.0, above=0, most=1)
    """Share of pairs that the aspects disagree about."""


@dataclasses.dataclass
class Styles(_Texts):
    """Text with known people, so with a known limit; see data/benchmarks/styles.py."""

    train_users: int = positive(2000)
    """People to learn from."""
    eval_users: int = positive(1000)
    """People to validate on, and as many to test on."""


@dataclasses.dataclass
class Synthetic(_Source):
    """The paper's two kinds of user on y in [0, 1]; see data/benchmarks/synthetic.py."""

    published: bool = False
    """Draw from the fixed 20,000 published pairs; otherwise every pair is fresh."""
    train_users: int = positive(2)
    """Users of the stored training split; training itself draws its own."""
    eval_users: int = positive(2000)
    """Users to validate on, and as many to test on."""


Data = Rows | UltraFeedback | Styles | Synthetic
