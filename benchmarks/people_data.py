"""The data sets of benchmarks.people: files of rows, and made-up people whose Bayes limit is known."""

import dataclasses
import gzip
import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm, qmc

from fssa_jax.errors import UserError

_DRAWS = 4096  # of z, for limits that have no closed form

_FIRST = "ba be bi bo bu da de di do du ka ke ki ko ku ma me mi mo mu"
_LAST = "lan ler lin lor lun ras res ris ros rus"
_WORDS = [first + last for first in _FIRST.split() for last in _LAST.split()]


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Rows, and the truth behind them: a response has the reward s + ⟨f, z⟩ for a person z.

    Attributes:
      rows: choices, as in data/rows.py.
      truth: (s, f) of every response, f of width m.
      points: values of z, (points, m), equally probable; quasi-random draws if z is normal.
      lapse: the probability that a person says the opposite of what they choose.
    """

    rows: list[dict[str, Any]]
    truth: dict[str, tuple[float, np.ndarray]]
    points: np.ndarray
    lapse: float = 0.0

    def of_texts(self, texts: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """s (texts,) and f (texts, m) of texts, each a prompt and a response."""
        s, f = zip(*(self.truth[response] for _, response in texts), strict=True)
        return np.array(s, np.float32), np.stack(f).astype(np.float32)


def normal_points(number: int, width: int, seed: int = 0) -> np.ndarray:
    """Quasi-random draws from N(0, I): a scrambled Sobol sequence; `number` is a power of 2."""
    return norm.ppf(qmc.Sobol(width, rng=seed).random(number)).astype(np.float32)


def raters(people: int = 3000, choices: int = 20, texts: int = 100, rank: int = 4) -> MadeUp:
    """Many people judge the same 100 texts; their taste has rank 4. What is learnt of a text helps for all people."""
    rng = np.random.default_rng(0)
    shared = 0.8 * rng.normal(size=texts)
    factors = 1.4 / rank**0.5 * rng.normal(size=(texts, rank))
    responses = [f"text {i} " + " ".join(rng.choice(_WORDS, 5)) for i in range(texts)]
    rows = []
    for person in range(people):
        reward = shared + factors @ rng.normal(size=rank)
        for a, b in rng.choice(texts, 2 * choices, replace=False).reshape(choices, 2):
            rows.append(_pair(f"r{person}", "Rate", responses[a], responses[b], _choice(rng, reward[a] - reward[b])))
    truth = {text: (shared[i], factors[i]) for i, text in enumerate(responses)}
    return MadeUp(rows, truth, normal_points(_DRAWS, rank))


def tastes(people: int = 400, choices: int = 30, attributes: int = 12, rank: int = 2, taste: bool = True) -> MadeUp:
    """Every text is new. A text has attributes, which show in its words; a taste of rank 2 weighs them."""
    rng = np.random.default_rng(0)
    loadings = 1.2 * rng.normal(size=(attributes, rank)) * taste
    shared = 0.4 * rng.normal(size=attributes)
    truth: dict[str, tuple[float, np.ndarray]] = {}

    def text() -> tuple[np.ndarray, str]:
        has = rng.random(attributes) < 0.3
        words = [rng.choice(_WORDS[8 * i : 8 * i + 8]) for i in np.flatnonzero(has)]
        words += list(rng.choice(_WORDS[8 * attributes :], 5))
        rng.shuffle(words)
        written = " ".join(words)
        truth[written] = (float(has @ shared), has @ loadings)
        return has.astype(float), written

    rows = []
    for person in range(people):
        weight = shared + loadings @ rng.normal(size=rank)
        for i in range(choices):
            (has_a, a), (has_b, b) = text(), text()
            if a != b:
                choice = _choice(rng, (has_a - has_b) @ weight)
                rows.append(_pair(f"t{person}", f"Write something {person}-{i}", a, b, choice))
    return MadeUp(rows, truth, normal_points(_DRAWS, rank) if taste else np.zeros((1, rank), np.float32))


def noise(people: int = 200) -> MadeUp:
    """`tastes` without a taste: people differ by chance alone, so that choices of a person say nothing."""
    return tastes(people, taste=False)


def kinds(people: int = 120, choices: int = 24, prompts: int = 60, lapse: float = 0.03) -> MadeUp:
    """Few people, of three kinds, and 3 % of the answers are mistakes. The eight styles of a response show in it.

    Kinds weigh length, politeness and examples differently, so the posterior has three points.
    """
    rng = np.random.default_rng(0)
    weights = 1.5 * np.array([[2.0, 1.0, 0.0], [-2.0, 0.0, 1.0], [0.0, -1.0, -2.0]])  # short, polite, with an example
    styles = np.array(list(itertools.product((0, 1), repeat=3)))
    truth: dict[str, tuple[float, np.ndarray]] = {}
    bank = []
    for topic in range(prompts):
        for short, polite, example in styles:
            words = list(rng.choice(_WORDS, 6))
            text = f"{'Well, ' if polite else ''}topic{topic} {' '.join(words[:3])}"
            text += "" if short else f" and then also {' '.join(words)} which takes quite a while longer to read"
            text += f" for example {words[0]}" if example else ""
            text += " please" if polite else ""
            truth[text] = (0.0, weights @ np.array([short, polite, example]))
            bank.append(text)
    rows = []
    for person in range(people):
        weight = weights[rng.integers(3)]
        for topic in rng.choice(prompts, choices, replace=False):
            a, b = rng.choice(8, 2, replace=False)
            choice = _choice(rng, weight @ (styles[a] - styles[b]))
            choice = 1 - choice if rng.random() < lapse else choice
            prompt = f"Tell me about topic{topic}"
            rows.append(_pair(f"u{person}", prompt, bank[8 * topic + a], bank[8 * topic + b], choice))
    return MadeUp(rows, truth, np.eye(3, dtype=np.float32), lapse)


def kinds40() -> MadeUp:
    """`kinds` with 40 people, of whom four are tested."""
    return kinds(40)


MADE_UP: dict[str, Callable[[], MadeUp]] = {
    "raters": raters,
    "tastes": tastes,
    "kinds": kinds,
    "kinds40": kinds40,
    "noise": noise,
}


def _choice(rng: np.random.Generator, margin: Any) -> int:
    """0 with probability σ(margin), else 1: a choice of Bradley, Terry and Luce."""
    return int(rng.random() > 1 / (1 + np.exp(-margin)))


def _pair(user: str, prompt: str, a: str, b: str, choice: int) -> dict[str, Any]:
    return {"user_id": user, "prompt": prompt, "response_a": a, "response_b": b, "choice": choice}


def rows_file(data: str, room: Path, lists: Sequence[str] = (), situations: Sequence[str] = ()) -> Path:
    """The file of rows of a data set: the file itself, or one in `room` with made-up or converted rows.

    Args:
      data: a file, or a name of `MADE_UP`.
      room: where rows are written, once.
      lists: names of files to read with `as_lists`.
      situations: names of files to read with `with_situations`.

    Raises:
      UserError: no such file or name, or rows that are no lists.
    """
    own = room / f"{name_of(data)}.jsonl"
    if data in MADE_UP:
        return _write(own, lambda: MADE_UP[data]().rows)
    source = Path(data)
    if not source.is_file():
        raise UserError(f"--data: {data} is neither a file nor one of {', '.join(MADE_UP)}")
    if source.name in lists:
        return _write(own, lambda: as_lists(_read(source)))
    if source.name in situations:
        return _write(own, lambda: with_situations(_read(source)))
    return source


def name_of(data: str) -> str:
    """The name of a data set, which its work directories have: of a file, what comes before the first dot."""
    return Path(data).name.split(".")[0]


def as_lists(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs that follow each other, the offer that was chosen against each of the others, as choices of one of n.

    Pairs of the same list have the same person and the same chosen response, and all lists are of the same length: the
    longest that divides the rows so. Each list is a situation of its own, for offers repeat by design. The chosen
    response takes every place in turn.

    Raises:
      UserError: rows cannot be divided so.

    >>> pair = {"user_id": "anna", "response_a": "tea", "choice": 0}
    >>> as_lists([pair | {"response_b": "milk"}, pair | {"response_b": "juice"}])[0]["responses"]
    ['tea', 'milk', 'juice']
    """
    sides = [(row["response_a"], row["response_b"]) for row in rows]
    pairs = [(a, b) if row["choice"] == 0 else (b, a) for row, (a, b) in zip(rows, sides, strict=True)]
    keys = [(row["user_id"], chosen) for row, (chosen, _) in zip(rows, pairs, strict=True)]

    def fits(size: int) -> bool:
        if len(rows) % size:
            return False
        return all(
            len(set(keys[i : i + size])) == 1 and len({other for _, other in pairs[i : i + size]}) == size
            for i in range(0, len(rows), size)
        )

    size = next((size for size in range(12, 1, -1) if fits(size)), 0)
    if not size:
        raise UserError("--lists: rows are not pairs of one chosen response with each of the others, list by list")
    made = []
    for number, i in enumerate(range(0, len(rows), size)):
        chosen, others = pairs[i][0], [other for _, other in pairs[i : i + size]]
        place = number % (size + 1)
        row = {key: value for key, value in rows[i].items() if key not in ("response_a", "response_b", "choice")}
        responses = [*others[:place], chosen, *others[place:]]
        made.append(row | {"responses": responses, "choice": place, "situation": f"s{number}"})
    return made


def with_situations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are each a situation of their own: their texts repeat by design, within a person too."""
    return [row | {"situation": f"s{i}"} for i, row in enumerate(rows)]


def attributes(name: str, texts: Sequence[tuple[str, str]]) -> np.ndarray | None:
    """What a modeller of stated choices knows of the offers, (texts, attributes); None for other data.

    Electricity has the six attributes of Revelt and Train (2000): price, time-of-day rates, seasonal rates, years of
    contract, local, well known. A journey has its price, minutes, changes and class of comfort.
    """
    read = {"electricity": _electricity, "trainchoice": _train}.get(name)
    return None if read is None else np.array([read(response) for _, response in texts], np.float32)


def _electricity(text: str) -> tuple[float, ...]:
    fixed, contract = re.search(r"fixed price of ([\d.]+)", text), re.search(r"contract of (\d+)", text)
    return (
        float(fixed[1]) if fixed else 0.0,
        float("Time-of-day" in text),
        float("Seasonal" in text),
        float(contract[1]) if contract else 0.0,
        float("local utility" in text),
        float("well-known" in text),
    )


def _train(text: str) -> tuple[float, ...]:
    found = re.search(r"([\d.]+) guilders, (\d+) minutes, (\d+) change\w*, comfort class (\w)", text)
    if found is None:
        raise UserError(f"--data: not an offer of a journey by train: {text[:60]!r}")
    return float(found[1]), float(found[2]), float(found[3]), float("ABCDE".index(found[4]))


def _read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _write(path: Path, make: Callable[[], list[dict[str, Any]]]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        whole.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in make()), encoding="utf-8")
        whole.replace(path)
    return path
