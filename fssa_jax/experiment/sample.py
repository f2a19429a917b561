"""Samples responses of a language model to many prompts, in parts that survive a killed process.

Every response has a seed of its own, so it depends neither on the batch that it is in nor on the number of processes.
"""

import dataclasses
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from fssa_jax.data.records import BadRecord, read_lines, read_records
from fssa_jax.errors import UserError
from fssa_jax.files import with_checksum, without_checksum, write_text
from fssa_jax.lm.base import Base
from fssa_jax.lm.messages import join_messages, messages_of
from fssa_jax.lm.writer import Samples, Writer, check_room, sampled_log_probs
from fssa_jax.ops.sampling import Sampling
from fssa_jax.people.choices import as_prompt
from fssa_jax.progress import doing
from fssa_jax.train import parallel

_log = logging.getLogger(__name__)

_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[”’」』）]*|\n")
_NUMBER = re.compile(r"(^|\n)\s*\d+$")  # of an item of a list, whose full stop ends no sentence
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """What responses depend on, besides the base, the prompts and the instructions.

    Attributes:
      number: responses per prompt and instruction.
      sampling: how tokens are chosen.
      max_new: maximum tokens per response.
      cut: responses that reach the limit end after their last whole sentence, if they have one.
      place: where an instruction goes: a system message, or the end of what the user says.
      seed: of all responses.
      log_probs: whether rows have the log-probabilities of their tokens, which take a pass of their own.
    """

    number: int = 1
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(1.0))
    max_new: int = 128
    cut: bool = False
    place: Literal["system", "user"] = "system"
    seed: int = 0
    log_probs: bool = True


@dataclasses.dataclass(frozen=True)
class Item:
    """One response to sample: `asked` is the prompt with the instruction, `number` counts those that are the same."""

    prompt: str
    instruction: str
    number: int
    asked: str
    seed: int


def items_of(prompts: Sequence[str], instructions: Sequence[str], settings: SampleSettings) -> list[Item]:
    """All responses to sample, in the order in which they are written.

    Raises:
      UserError: an instruction as a system message for a prompt that has one.
    """
    out = []
    for prompt in prompts:
        for instruction in instructions or [""]:
            asked = with_instruction(prompt, instruction, settings.place)
            for number in range(settings.number):
                key = (settings.seed, zlib.crc32(prompt.encode()), zlib.crc32(instruction.encode()), number)
                state = np.random.SeedSequence(key).generate_state(1)
                out.append(Item(prompt, instruction, number, asked, int(state[0]) >> 1))
    return out


def with_instruction(prompt: str, instruction: str, place: str) -> str:
    """The prompt with an instruction, as a system message or at the end of what the user says.

    Raises:
      UserError: the prompt has a system message already.
    """
    if not instruction:
        return prompt
    messages = messages_of(prompt)
    if place == "user":
        last = messages[-1]
        return join_messages([*messages[:-1], {**last, "content": f"{last['content']}\n\n{instruction}"}])
    if messages[0]["role"] == "system":
        raise UserError(f"{messages[0]['content'][:40]!r}: the prompt has a system message; give --instruct=user")
    return join_messages([{"role": "system", "content": instruction}, *messages])


def cut_to_sentence(text: str) -> str:
    """The text up to the end of its last whole sentence or line; all of it if there is none.

    >>> from fssa_jax.experiment.sample import cut_to_sentence
    >>> cut_to_sentence("Chess is old. Start with the pa")
    'Chess is old.'
    """
    found = list(_SENTENCE.finditer(text))
    ends = [match.end() for match in found if not _NUMBER.search(text[: match.start()])]
    short = text[: ends[-1]].rstrip() if ends else ""
    return short or text


def sample(base: Base, items: Sequence[Item], settings: SampleSettings, out: Path, batch: int = 64) -> int:
    """Writes a response for every item to `out`, as JSONL in the order of the items; returns how many are new.

    Parts are in OUT.parts until all are done. A killed run goes on where it was. On several hosts with a shared disk
    each process samples its share of the parts, and the first one writes the result.

    A row has the prompt, the instruction and its number, `response`, `finish` ("stop", "length" or "sentence"),
    `unfinished`, and, unless the settings say otherwise, `log_probs`, of every token and of the stop token, in nats at
    temperature 1, given the prompt with its instruction.

    Raises:
      UserError: a prompt that leaves no room, or parts of another run.
    """
    devices = jax.local_devices()
    batch = -(-batch // len(devices)) * len(devices)
    if len(devices) > 1:
        base = dataclasses.replace(base, variables=parallel.on_all(base.variables, devices))
    writer = Writer(base, settings.sampling, settings.max_new, devices=devices)
    lengths = [len(base.tokenizer.prompt(item.asked).tokens) for item in items]
    check_room(base, [item.asked for item in items], settings.max_new)
    # Prompts of similar length share a batch, and so a compiled shape and little padding.
    order = np.argsort(np.asarray(lengths), kind="stable")
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    directory = out.with_name(f"{out.name}.parts")
    _begin(directory, base, items, settings, batch)
    files = [directory / f"{i:06d}.jsonl" for i in range(len(parts))]
    mine = [i for i in range(len(parts)) if i % jax.process_count() == jax.process_index() and not files[i].exists()]
    with doing("sampling", sum(len(parts[i]) for i in mine), "responses") as work:
        for i in mine:
            chosen = [items[int(j)] for j in parts[i]]
            size = batch if len(parts) > 1 else -(-len(chosen) // len(devices)) * len(devices)
            padded = [chosen[j % len(chosen)] for j in range(size)]
            samples = writer([item.asked for item in padded], None, seeds=[item.seed for item in padded])
            rows = _rows(base, samples, padded, settings)[: len(chosen)]
            write_text(files[i], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            work.add(len(chosen))
    parallel.wait_for_all("sampled")
    if jax.process_index() == 0:
        lines = [""] * len(items)
        for part, file in zip(parts, files, strict=True):
            for j, line in zip(part, file.read_text(encoding="utf-8").split("\n"), strict=False):
                lines[int(j)] = line
        write_text(out, "".join(line + "\n" for line in lines))
        shutil.rmtree(directory)
    return sum(len(parts[i]) for i in mine)


def _begin(directory: Path, base: Base, items: Sequence[Item], settings: SampleSettings, batch: int) -> None:
    """Makes the directory of the parts, or checks that it is of the same run."""
    texts = [[item.prompt, item.instruction, item.number] for item in items]
    values: dict[str, Any] = {"base": base.fingerprint, "batch": batch, "items": texts, **dataclasses.asdict(settings)}
    values |= {"dtype": str(base.decoder.dtype), "date": base.tokenizer.date if base.tokenizer.dated else ""}
    sealed = with_checksum(values)["crc32"]
    file = directory / _SETTINGS
    if file.exists():
        try:
            before = without_checksum(json.loads(file.read_text(encoding="utf-8")))["run"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{directory}: damaged ({error}); remove it, and everything is sampled again") from error
        if before != sealed:
            raise UserError(
                f"{directory}: was begun with another base, other prompts or settings, another --batch or number of "
                "devices, or on another day for a template that asks for it; give these, or another --out, or remove it"
            )
        _log.info("%s: goes on after %d parts", directory, len(list(directory.glob("*.jsonl"))))
    elif jax.process_index() == 0:
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory}: holds other files; give another --out")
        write_text(file, json.dumps(with_checksum({"run": sealed})))
    parallel.wait_for_all("begun")


def _rows(base: Base, samples: Samples, items: Sequence[Item], settings: SampleSettings) -> list[dict[str, Any]]:
    log_probs = sampled_log_probs(base, samples) if settings.log_probs else None
    out = []
    for i, item in enumerate(items):
        text, tokens, finish = samples.texts[i].strip(), samples.tokens[i], "stop"
        number = len(tokens) + (samples.ends[i] is not None)
        if samples.ends[i] is None:
            finish = "length"
            short = cut_to_sentence(text) if settings.cut else text
            if short != text:
                text, finish = short, "sentence"
                number = _tokens_of(base, tokens, short)
        messages = messages_of(item.prompt)
        row: dict[str, Any] = {"prompt": item.prompt if len(messages) == 1 else messages}
        row |= {"instruction": item.instruction} if item.instruction else {}
        row |= {"number": item.number, "response": text, "finish": finish, "unfinished": finish != "stop"}
        if log_probs is not None:
            row["log_probs"] = [round(float(value), 4) for value in log_probs[i][:number]]
        out.append(row)
    return out


def _tokens_of(base: Base, tokens: Sequence[int], text: str) -> int:
    """The number of the first tokens whose text holds `text`."""
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if base.tokenizer.decode([tokens[:middle]])[0].lstrip().startswith(text):
            high = middle
        else:
            low = middle + 1
    return high


def read_prompts(path: str) -> list[str]:
    """The prompts of a file, each once: a line each of a .txt file, or the column `prompt`.

    Raises:
      UserError: no such file, a row without a prompt, or no prompts.
    """
    return [as_prompt(value, place) for place, value in _values(path, "prompt", str | list)]


def read_instructions(path: str) -> list[str]:
    """The instructions of a file, each once: a line each of a .txt file, or the column `instruction`.

    Raises:
      UserError: no such file, a row without an instruction, or no instructions.
    """
    return [str(value) for _, value in _values(path, "instruction", str)]


def _values(path: str, column: str, kinds: Any) -> Iterable[tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    if path.endswith((".txt", ".txt.gz")):
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; give a file of {column}s, one on each line")
        for place, line in read_lines(path):
            found.setdefault(line.strip(), (place, line.strip()))
    else:
        for record in read_records(path):
            if isinstance(record, BadRecord):
                raise UserError(f"{record.place}: {record.reason}")
            value = record.values.get(column) if isinstance(record.values, dict) else None
            if not isinstance(value, kinds) or not value:
                raise UserError(f"{record.place}: column {column!r} is missing or no text; fill it in")
            found.setdefault(json.dumps(value), (record.place, value))
    if not found:
        raise UserError(f"{path}: no {column}s; write one on each line")
    return found.values()
