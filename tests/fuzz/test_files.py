"""Thousands of damaged and odd files: each is read, or refused in one line. No traceback, no hang."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from fssa_jax.config import Rows
from fssa_jax.data.features import read_vectors
from fssa_jax.data.reading import read_source
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.data.schemas import ASPECTS
from fssa_jax.people.choices import read_choices, read_responses
from tests import tiny
from tests.mistakes import outcome

pytestmark = pytest.mark.fuzz

PAIRS = tiny.rows(users=4, number=4)
SCHEMAS = {
    "choices": PAIRS,
    "trl": [
        {"user_id": r["user_id"], "prompt": [{"role": "user", "content": r["prompt"]}]}
        | {"chosen": [{"role": "assistant", "content": r["response_a"]}]}
        | {"rejected": [{"role": "assistant", "content": r["response_b"]}]}
        for r in PAIRS
    ],
    "lists": [
        {
            "user_id": r["user_id"],
            "prompt": r["prompt"],
            "responses": [r["response_a"], r["response_b"], "c"],
            "choice": 2,
        }
        for r in PAIRS
    ],
    "rankings": [{"user_id": r["user_id"], "ranking": [r["response_a"], "x", r["response_b"]]} for r in PAIRS],
    "ratings": [{"user_id": r["user_id"], "response": r["response_a"], "rating": i / 3} for i, r in enumerate(PAIRS)],
    "conversations": [
        {"chosen": f"\n\nHuman: {r['prompt']}\n\nAssistant: {r['response_a']}"}
        | {"rejected": f"\n\nHuman: {r['prompt']}\n\nAssistant: {r['response_b']}"}
        for r in PAIRS
    ],
    "ultrafeedback": [
        {
            "instruction": r["prompt"],
            "completions": [
                {
                    "response": r[side],
                    "annotations": {a: {"Rating": str(n if a == "honesty" else 5 - n)} for a in ASPECTS[:2]},
                }
                for n, side in enumerate(("response_a", "response_b"), 1)
            ],
        }
        for r in PAIRS
    ],
}
ODD = [
    *(
        None,
        "",
        " ",
        0,
        1,
        -1,
        2**70,
        1e308,
        float("nan"),
        float("inf"),
        True,
        False,
        [],
        {},
        [None],
        ["a"],
        "²",
        "0x1",
    ),
    *("\x00", "\x1b[31m", "\ud800", "a" * 10_000, {"role": "user"}, [{"role": "user", "content": 3}], "tie", "skip"),
    *([[["deep"]]], "$x_$", "user\nname", "\u202e", "7.0", 7.0, 3.5, "nan", "None", ["a", "a"], ["a", ["b"]]),
]


def odd_records(rng, records):
    """The records with some cells replaced, removed or renamed."""
    out = [dict(record) for record in records]
    for _ in range(rng.integers(1, 5)):
        record = out[rng.integers(len(out))]
        if not record:
            continue
        name = list(record)[rng.integers(len(record))]
        how = rng.integers(4)
        if how == 0:
            record.pop(name)
        elif how == 1:
            record[str(ODD[rng.integers(len(ODD))])[:20]] = record.pop(name)
        else:
            record[name] = ODD[rng.integers(len(ODD))]
    return out


def encoded(rng, records):
    """(ending, content) of records in a random format."""
    ending = ("jsonl", "json", "csv", "tsv", "jsonl.gz", "csv.gz")[rng.integers(6)]
    if ending.startswith("json"):
        lines = [json.dumps(record) for record in records]
        text = "\n".join(lines) if ending != "json" else f"[{', '.join(lines)}]"
    else:
        stream = io.StringIO()
        names = list(dict.fromkeys(name for record in records for name in record))
        writer = csv.DictWriter(stream, names, delimiter="\t" if ending == "tsv" else ",;|"[rng.integers(3)])
        writer.writeheader()
        for record in records:
            cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in record.items()}
            writer.writerow({k: str(v).encode("utf-8", "replace").decode() for k, v in cells.items()})
        text = stream.getvalue()
    content = text.encode("utf-16" if rng.random() < 0.05 else "utf-8", "surrogatepass")
    return ending, gzip.compress(content) if ending.endswith("gz") else content


def damaged(rng, content):
    """Bytes that were flipped, cut off, repeated or inserted."""
    content = bytearray(content)
    how = rng.integers(5)
    if how == 0:
        return bytes(content[: rng.integers(len(content) + 1)])
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(max(len(content), 1)))
        if how == 1 and content:
            content[place] ^= 1 << int(rng.integers(8))
        elif how == 2:
            content[place:place] = bytes(rng.integers(0, 256, 5).tolist())
        elif how == 3:
            content[place : place + 20] = b""
        else:
            content[place:place] = [b'"', b"\n", b",", b"{", b"\\", b"\x00", b"\xff"][rng.integers(7)]
    return bytes(content)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_2000_files_of_rows(tmp_path, schema):
    found = {"read": 0, "refused": 0}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        ending, content = encoded(rng, odd_records(rng, SCHEMAS[schema]) if seed % 3 else SCHEMAS[schema])
        path = tmp_path / f"{seed}.{ending}"
        path.write_bytes(damaged(rng, content) if seed % 2 else content)
        data = Rows(path=str(path), on_error="skip" if seed % 5 else "raise", ties="half" if seed % 7 else "drop")
        found["refused" if outcome(lambda data=data: read_source(data))[1] else "read"] += 1
    assert min(found.values()) > 10, found


@pytest.mark.parametrize("schema", ["choices", "lists", "ratings"])
def test_odd_rows_become_whole_data_sets_or_one_line(tmp_path, schema):
    records = SCHEMAS[schema] * 1 + [r | {"user_id": f"{r['user_id']}-2"} for r in SCHEMAS[schema]]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        path = tiny.write_rows(tmp_path / f"{seed}.jsonl", odd_records(rng, records))
        data = Rows(path=str(path), on_error="skip", components=3, features="tfidf")
        made, _ = outcome(lambda data=data: rows_dataset(data))
        assert made is None or np.isfinite(made.features).all()


def test_500_files_of_choices_responses_and_vectors(tmp_path):
    mine = [{k: v for k, v in row.items() if k != "user_id"} for row in PAIRS[:5]]
    given = [{"prompt": row["prompt"], "response": row["response_a"]} for row in PAIRS[:5]]
    found = {(kind, refused): 0 for kind in range(3) for refused in (False, True)}
    for seed in range(500):
        rng = np.random.default_rng(seed)
        if seed % 3 == 2:
            np.save(
                tmp_path / "v.npy", rng.normal(size=(4, 3)).astype([np.float32, np.float64, np.int8][seed % 9 // 3])
            )
            content = (tmp_path / "v.npy").read_bytes()
            (tmp_path / "v.npy").write_bytes(damaged(rng, content))
            _, message = outcome(lambda: read_vectors(str(tmp_path / "v.npy"), "", [("p", str(i)) for i in range(4)]))
            found[2, bool(message)] += 1
            continue
        records, read = ((mine, read_choices), (given, read_responses))[seed % 3]
        ending, content = encoded(rng, odd_records(rng, records))
        path = tmp_path / f"{seed}.{ending}"
        path.write_bytes(damaged(rng, content) if seed % 2 else content)
        _, message = outcome(lambda read=read, path=path: read(str(path)))
        found[seed % 3, bool(message)] += 1
    assert min(found.values()) > 0, found
