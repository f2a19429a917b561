"""`chat`: everyday questions that a real chat model answered in several manners, judged by simulated people.

SmolLM2-135M-Instruct wrote 14 to 17 responses per prompt, as eight instructions asked. The instruction is not kept,
so a response differs from the others by its manner and by what the model happened to say. Six attributes are read off
every text by a fixed rule (data/manner.py), and a person has hidden weights on them (3⁶ = 729 possible people); see
simulated.py. Held-out people judge held-out prompts, two thirds of them about topics that no training prompt is about.

The file chat.jsonl.gz was made by `python -m benchmarks.chat_data`.
"""

import dataclasses
import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np

from fssa_jax.data.benchmarks.simulated import SimulatedPeople
from fssa_jax.data.manner import has

ATTRIBUTES = ("long", "list", "exclamation", "emoji", "second_person", "contraction")
MANY_WORDS = 28
"""A longer text has the attribute "long", as half of them do."""

_FILE = Path(__file__).with_name("chat.jsonl.gz")


@dataclasses.dataclass(frozen=True)
class ChatTexts:
    """All texts of the benchmark.

    Attributes:
      texts: (prompt, response) of each.
      unfinished: (texts,) whether a response was cut off after a whole sentence.
      prompt: (texts,) the number of its prompt.
      splits: numbers of the prompts for training, validation and testing.
      topics: the topic of every prompt.
    """

    texts: list[tuple[str, str]]
    unfinished: np.ndarray
    prompt: np.ndarray
    splits: dict[str, np.ndarray]
    topics: list[str]

    @property
    def found(self) -> np.ndarray:
        """(texts, attributes) the attributes of every response, 0 or 1."""
        return has(ATTRIBUTES, [response for _, response in self.texts], MANY_WORDS).astype(np.int8)


@cache
def chat_texts() -> ChatTexts:
    """The texts of the benchmark, from the file next to this module."""
    with gzip.open(_FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [(row["prompt"], each["response"]) for row in rows for each in row["responses"]]
    unfinished = np.array([each["unfinished"] for row in rows for each in row["responses"]])
    prompt = np.repeat(np.arange(len(rows)), [len(row["responses"]) for row in rows])
    names = np.array([row["split"] for row in rows])
    splits = {name: np.flatnonzero(names == name) for name in ("train", "val", "test")}
    return ChatTexts(texts, unfinished, prompt, splits, [row["topic"] for row in rows])


def attributes_of(prompt: str, response: str) -> tuple[np.ndarray, bool]:
    """(6,) the attributes of a response, as 0/1, and whether it says anything.

    >>> from fssa_jax.data.benchmarks.chat import attributes_of
    >>> attributes_of("How do I boil an egg?", "- Boil some water 🔥\\n- Don't forget the egg!")[0].tolist()
    [0, 1, 1, 1, 0, 1]
    """
    del prompt
    return has(ATTRIBUTES, [response], MANY_WORDS)[0].astype(np.int8), len(response.split()) > 1


PEOPLE = SimulatedPeople(ATTRIBUTES, scale=2.5, read=attributes_of)


def draw_pairs(
    rng: np.random.Generator, prompts: np.ndarray, shape: tuple[int, ...], prompt_of: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """Ids (*shape, 2) of two responses to one random prompt that differ in an attribute; prompts (*shape,) or (n,)."""
    asked = prompts if prompts.shape == shape else rng.choice(prompts, shape)
    out = np.zeros((*shape, 2), int)
    for number in np.unique(asked):
        mine = np.flatnonzero(prompt_of == number)
        first, second = np.meshgrid(mine, mine, indexing="ij")
        differ = (found[first] != found[second]).any(-1)
        pairs = np.stack([first[differ], second[differ]], -1)
        here = asked == number
        out[here] = pairs[rng.integers(len(pairs), size=int(here.sum()))]
    return out
