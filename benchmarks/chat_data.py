"""Makes the texts of the benchmark `chat`: a chat model answers everyday questions in several manners.

  python -m benchmarks.chat_data --out=chat.jsonl.gz [--raw=responses.jsonl]

benchmarks/chat_texts/prompts.tsv has 128 questions, eight for each of 16 topics; manners.jsonl has eight manners, each
as a system message with one or two turns that show it. SmolLM2-135M-Instruct (`smollm2`) answers every question twice
in every manner, and three times in one that it often ignores, at temperature 0.7 and top-p 0.95, with up to 64 tokens,
cut after the last whole sentence. Left out are responses without a whole sentence, with a loop, of fewer than three
words, and those that were written before. What remains is written without the manner that was asked for. Two topics,
and one question of eight others, are for testing.

--raw keeps all responses, and is read if it is there. Sampling takes 27 minutes on two x86-64 CPU cores.
"""

import dataclasses
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from fssa_jax import program
from fssa_jax.data.benchmarks.chat import ATTRIBUTES, MANY_WORDS
from fssa_jax.data.manner import has
from fssa_jax.errors import UserError
from fssa_jax.evaluate.quality import loops
from fssa_jax.experiment.sample import Item, SampleSettings, items_of, sample
from fssa_jax.files import write_bytes
from fssa_jax.lm.base import load_base
from fssa_jax.lm.messages import join_messages
from fssa_jax.ops.sampling import Sampling

_OUT = flags.DEFINE_string("out", "", "file to write")
_RAW = flags.DEFINE_string("raw", "", "all responses, kept or read")
flags.adopt_module_key_flags(program)

_HERE = Path(__file__).parent / "chat_texts"
_TEST_TOPICS = ("nature", "technology")
_TEST_TOO = 8  # topics of training with one question for testing; all have one for validation
_SETTINGS = SampleSettings(3, Sampling(0.7, top_p=0.95), max_new=64, cut=True, log_probs=False)


def questions() -> list[tuple[str, str]]:
    """(topic, question) of every prompt."""
    lines = (_HERE / "prompts.tsv").read_text(encoding="utf-8").splitlines()
    return [(topic, question) for topic, question in (line.split("\t") for line in lines)]


def split_of(topic: str, place: int, topics: list[str]) -> str:
    """The split of the question at a place among those of its topic."""
    if topic in _TEST_TOPICS:
        return "test"
    number = [t for t in topics if t not in _TEST_TOPICS].index(topic)
    return "test" if place == 0 and number < _TEST_TOO else "val" if place == 1 else "train"


def asked() -> list[Item]:
    """Every response to sample: every question in every manner, as a conversation."""
    lines = (_HERE / "manners.jsonl").read_text(encoding="utf-8").splitlines()
    out = []
    for _, question in questions():
        for manner in map(json.loads, lines):
            prompt = join_messages([*manner["messages"], {"role": "user", "content": question}])
            out += items_of([prompt], [], dataclasses.replace(_SETTINGS, number=manner["responses"]))
    return out


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The responses to one prompt that are good enough, each once."""
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        text = row["response"]
        if row["finish"] != "length" and not loops(text) and len(text.split()) > 2:
            out.setdefault(text, {"response": text, "unfinished": row["unfinished"]})
    return list(out.values())


def main() -> None:
    """Samples the responses, and writes those that are kept."""
    if not _OUT.value:
        raise UserError("--out is needed; see --help")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(_RAW.value or Path(scratch) / "raw.jsonl")
        if not raw.exists():
            sample(load_base("smollm2"), asked(), _SETTINGS, raw)
        rows = [json.loads(line) for line in raw.read_text(encoding="utf-8").splitlines()]
    by_question: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_question.setdefault(row["prompt"][-1]["content"], []).append(row)
    topics = list(dict.fromkeys(topic for topic, _ in questions()))
    places: dict[str, int] = {}
    out = []
    for topic, question in questions():
        place = places[topic] = places.get(topic, -1) + 1
        responses = kept(by_question[question])
        out.append(
            {"prompt": question, "topic": topic, "split": split_of(topic, place, topics), "responses": responses}
        )
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:  # the same bytes each time
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in out).encode())
    write_bytes(Path(_OUT.value), stream.getvalue())
    texts = [each["response"] for row in out for each in row["responses"]]
    shares = has(ATTRIBUTES, texts, MANY_WORDS).mean(0).round(3).tolist()
    words = float(np.median([len(text.split()) for text in texts]))
    splits = {name: sum(row["split"] == name for row in out) for name in ("train", "val", "test")}
    facts = {"responses": len(texts), "of": len(rows), "prompts": splits, "median_words": words}
    print(json.dumps(facts | {"bytes": len(stream.getvalue()), "shares": dict(zip(ATTRIBUTES, shares, strict=True))}))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
