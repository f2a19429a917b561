"""Where choices come from: rows of people's choices, UltraFeedback's ratings, or a built-in benchmark."""

import dataclasses
from typing import Literal

from fssa_jax.config.fields import group, number, positive


@dataclasses.dataclass
class TextEncoder:
    """The pretrained model whose hidden states are the features of texts; see lm/text_encoder.py."""

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Directory or hub name."""
    pool: Literal["mean", "response", "last"] = "mean"
    """Mean over all tokens; for a decoder also the mean over the response's tokens, or the last token."""
    layer: int = number(0, least=0)
    """Number of blocks of a decoder that are run; 0 for all."""
    max_tokens: int = number(0, least=0)
    """Maximum tokens per text, longer ones are cut; 0 for the limit of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and computation; the resulting vectors are float32."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Implementation of a decoder's attention: cudnn on GPUs in bfloat16, splash on TPUs. auto is cudnn where
    it runs, else xla."""
    normalise: bool = True
    """Scale the vectors to unit length."""


@dataclasses.dataclass
class _Source:
    split_seed: int = number(0, least=0)
    """Seed of the splits, of the pools, and of the data that a benchmark draws."""


@dataclasses.dataclass
class _Texts(_Source):
    features: Literal["auto", "given", "encoder", "tfidf"] = "auto"
    """`given`: vectors from a file; `encoder`: see `text_encoder`; `tfidf`: TF-IDF and truncated SVD. `auto`: vectors
    next to the rows if there are any, else a text encoder that is on this machine, else tfidf; for styles and chat
    tfidf."""
    components: int = positive(64)
    """Components of the truncated SVD of tfidf."""
    text_encoder: TextEncoder = group(TextEncoder)
    """The pretrained model, for features `encoder`."""
    manner: bool = False
    """Counts of marks of manner, such as lists, emoji, contractions and lengths, are features next to those of encoder
    and tfidf; see data/manner.py."""


@dataclasses.dataclass
class Rows(_Texts):
    """A file of people's choices, a prepared directory, or a `datasets` directory or hub name; see data/rows.py."""

    path: str = ""
    """File, directory or hub name."""
    on_error: Literal["raise", "skip"] = "raise"
    """`raise`: a bad row is an error; `skip`: it is left out, counted and listed."""
    ties: Literal["drop", "half"] = "drop"
    """Rows whose choice says tie: left out and counted, or kept as two choices, one each way,
    of weight ½ (`half`)."""
    ratings: Literal["pairs", "levels"] = "pairs"
    """Ratings become choices between two rated responses, in files of ratings alone (`pairs`), or choices between a
    response and the thresholds of the levels, next to rows of all kinds (`levels`)."""
    rating_gap: float = number(0.0, least=0)
    """Smallest difference of two ratings of a person that counts as a choice, for pairs; any difference if 0."""
    groups: tuple[str, ...] = ()
    """Only the users of these groups; () for all."""
    vectors: str = ""
    """A .npy file with one row per text; default: next to the rows."""
    texts: str = ""
    """A .jsonl(.gz) file of [prompt, response] in the order of `vectors`."""
    quantities: bool = True
    """Numbers in texts, by their units, are features next to those of encoder and tfidf; see data/quantities.py."""
    min_context: int = number(1, least=0)
    """Users with fewer context rows are left out, by name."""
    min_targets: int = number(1, least=0)
    """Users with fewer target rows are left out, by name."""
    max_rows: int = positive(64)
    """Maximum rows per user and pool; the rest is dropped at random, and counted."""
    hold_out_items: bool = False
    """Train only on rows whose `split_item` is train."""


@dataclasses.dataclass
class UltraFeedback(Rows):
    """Ratings of completions by aspect: each aspect is a group of users (arXiv 2310.01377)."""

    labels: tuple[str, ...] = ()
    """Aspects that become groups of users; () for those of a prepared directory, else helpfulness and honesty."""
    conflicting: float = number(1.0, above=0, most=1)
    """Share of pairs that the aspects disagree about."""


@dataclasses.dataclass
class Styles(_Texts):
    """Text judged by simulated people, so the Bayes limit is known; see data/benchmarks/styles.py."""

    train_users: int = positive(2000)
    """Number of training users."""
    eval_users: int = positive(1000)
    """Number of validation users, and of test users."""


@dataclasses.dataclass
class Chat(_Texts):
    """Responses of SmolLM2 judged by simulated people, so the Bayes limit is known; see data/benchmarks/chat.py."""

    manner: bool = True
    """As for rows: people differ by manner here."""
    components: int = positive(16)
    """As for rows."""
    train_users: int = positive(10_000)
    """Number of training users."""
    eval_users: int = positive(400)
    """Number of validation users, and of test users."""


@dataclasses.dataclass
class Synthetic(_Source):
    """The paper's two kinds of user on y in [0, 1]; see data/benchmarks/synthetic.py."""

    published: bool = False
    """Draw from the fixed 20,000 published pairs; otherwise every pair is fresh."""
    train_users: int = positive(2)
    """Users of the stored training split; training itself draws fresh users."""
    eval_users: int = positive(2000)
    """Number of validation users, and of test users."""


Data = Rows | UltraFeedback | Styles | Chat | Synthetic
