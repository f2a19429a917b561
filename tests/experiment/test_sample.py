"""Sampled responses: each depends on its own seed alone, and a killed run loses nothing."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.experiment import sample as sampling
from fssa_jax.experiment.sample import (
    SampleSettings,
    cut_to_sentence,
    items_of,
    read_instructions,
    read_prompts,
    sample,
    with_instruction,
)
from fssa_jax.lm.base import load_base
from fssa_jax.lm.messages import join_messages, messages_of
from fssa_jax.lm.writer import Writer
from fssa_jax.ops.sampling import Sampling
from tests import tiny_policy
from tests.mistakes import complaint
from tests.programs import ROOT, assert_one_clear_line, run

PROMPTS = ["how do I bake bread?", "hey", "mix", "how do I mix it, user?", "bread"]
SETTINGS = SampleSettings(number=2, sampling=Sampling(0.9), max_new=7, seed=3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_policy.base(tmp_path_factory.mktemp("lm") / "base")


@pytest.fixture(scope="module")
def base(directory):
    return load_base(str(directory))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """All responses in one part."""
    out = tmp_path_factory.mktemp("sampled") / "all.jsonl"
    assert sample(base, items_of(PROMPTS, [], SETTINGS), SETTINGS, out) == 10
    return rows_of(out)


def test_rows_are_in_the_order_of_the_prompts_and_say_how_they_end(whole):
    assert [(row["prompt"], row["number"]) for row in whole] == [(p, n) for p in PROMPTS for n in (0, 1)]
    assert all(row["unfinished"] == (row["finish"] == "length") for row in whole)
    lengths = [len(row["log_probs"]) for row in whole]
    assert all(n == 7 for n, row in zip(lengths, whole, strict=True) if row["finish"] == "length")
    assert all(n <= 8 for n in lengths)
    assert len({row["response"] for row in whole}) > 5
    assert all("instruction" not in row for row in whole)


def test_a_response_depends_on_its_own_seed_alone(base, whole, tmp_path):
    """Not on the batch that it is in; another seed gives another one."""
    items = items_of(PROMPTS, [], SETTINGS)
    sample(base, items, SETTINGS, tmp_path / "parts.jsonl", batch=3)
    for row, expected in zip(rows_of(tmp_path / "parts.jsonl"), whole, strict=True):
        assert row["response"] == expected["response"]
        np.testing.assert_allclose(row["log_probs"], expected["log_probs"], atol=2e-3)
    other = dataclasses.replace(SETTINGS, seed=4)
    sample(base, items_of(PROMPTS, [], other), other, tmp_path / "other.jsonl")
    different = [row["response"] for row in rows_of(tmp_path / "other.jsonl")]
    assert sum(a != row["response"] for a, row in zip(different, whole, strict=True)) > 5
    assert len({item.seed for item in items}) == len(items)
    turned = items_of(PROMPTS[::-1], [], SETTINGS)
    assert {(i.prompt, i.number): i.seed for i in turned} == {(i.prompt, i.number): i.seed for i in items}


def test_log_probs_are_those_of_the_tokens_after_the_instruction(base, tmp_path):
    settings = dataclasses.replace(SETTINGS, number=1, sampling=Sampling(0.0))
    [item] = items_of(["how do I bake bread?"], ["just mix it"], settings)
    assert [m["role"] for m in messages_of(item.asked)] == ["system", "user"]
    sample(base, [item], settings, tmp_path / "out.jsonl")
    [row] = rows_of(tmp_path / "out.jsonl")
    assert row["prompt"] == "how do I bake bread?"
    assert row["instruction"] == "just mix it"
    before = base.tokenizer.prompt(item.asked).tokens
    tokens, expected = list(before), []
    for value in row["log_probs"]:  # greedy: each token is the most likely one
        logits = base.decoder.apply(base.variables, jnp.asarray([tokens]))[0, -1]
        tokens.append(int(logits.argmax()))
        expected.append(float(jax.nn.log_softmax(logits)[tokens[-1]]))
        assert value == pytest.approx(expected[-1], abs=2e-3)
    ending = tokens[-1:] if row["finish"] == "stop" else []
    said = tokens[len(before) : len(tokens) - len(ending)]
    assert base.tokenizer.decode([said])[0].strip() == row["response"]


def test_a_killed_run_goes_on_where_it_was(base, whole, tmp_path, monkeypatch):
    items, out = items_of(PROMPTS, [], SETTINGS), tmp_path / "out.jsonl"
    wrote, write = [], sampling.write_text

    def killed(path, text):
        if len(wrote) == 3:  # the settings and two parts
            raise KeyboardInterrupt
        wrote.append(path.name)
        write(path, text)

    monkeypatch.setattr(sampling, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(base, items, SETTINGS, out, batch=3)
    assert not out.exists()
    monkeypatch.undo()
    other = dataclasses.replace(SETTINGS, max_new=6)
    half = dataclasses.replace(base, decoder=dataclasses.replace(base.decoder, dtype=jnp.dtype("bfloat16")))
    for wrong in ((base, items, other, out, 3), (base, items, SETTINGS, out, 4), (half, items, SETTINGS, out, 3)):
        assert "begun with another base, other prompts or settings" in complaint(sample, *wrong)
    assert sample(base, items, SETTINGS, out, batch=3) == 4  # of ten, six were there
    assert [row["response"] for row in rows_of(out)] == [row["response"] for row in whole]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_responses_that_reach_the_limit_end_after_a_sentence(base, tmp_path, monkeypatch):
    """The tokens that are left out have no log-probability either."""
    settings = dataclasses.replace(SETTINGS, cut=True)
    items = items_of(PROMPTS, [], settings)
    monkeypatch.setattr(sampling, "cut_to_sentence", lambda text: text[: len(text) // 2].strip() or text)
    sample(base, items, settings, tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    cut = [row for row in rows if row["finish"] == "sentence"]
    assert cut
    for row in cut:
        [item] = [item for item in items if (item.prompt, item.number) == (row["prompt"], row["number"])]
        [tokens] = Writer(base, settings.sampling, 7)([item.asked], None, seeds=[item.seed]).tokens
        texts = [base.tokenizer.decode([tokens[:n]])[0].lstrip() for n in range(8)]
        number = len(row["log_probs"])  # the fewest tokens that hold the text
        assert texts[number].startswith(row["response"])
        assert not texts[number - 1].startswith(row["response"])
    assert all(row["unfinished"] for row in cut)
    assert "length" not in {row["finish"] for row in rows if len(row["response"]) > 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! And th", "One. Two!"),
        ("He said “no.” And the", "He said “no.”"),
        ("1. bread\n2. mi", "1. bread"),
        ("It costs 3.50 and", "It costs 3.50 and"),
        ("你好。我是一个", "你好。"),
        ("“真的？”他", "“真的？”"),
        ("no end", "no end"),
        ("", ""),
        ("Whole.", "Whole."),
    ],
)
def test_the_end_of_a_sentence(text, expected):
    assert cut_to_sentence(text) == expected


def test_instructions_go_where_they_are_asked_to(base):
    talk = join_messages([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hey"}])
    at_the_end = messages_of(with_instruction(talk, "Be brief.", "user"))
    assert [m["content"] for m in at_the_end] == ["Be kind.", "hey\n\nBe brief."]
    assert "give --instruct=user" in complaint(with_instruction, talk, "Be brief.", "system")
    assert with_instruction(talk, "", "system") == talk
    settings = dataclasses.replace(SETTINGS, number=1)
    items = items_of(["hey", "mix"], ["a", "b"], settings)
    assert [(item.prompt, item.instruction) for item in items] == [
        ("hey", "a"),
        ("hey", "b"),
        ("mix", "a"),
        ("mix", "b"),
    ]


def test_prompts_and_instructions_are_read_from_lines_and_rows(tmp_path):
    lines = tmp_path / "prompts.txt"
    lines.write_text("hey\n\nmix it \nhey\n")
    assert read_prompts(str(lines)) == ["hey", "mix it"]
    rows = tmp_path / "rows.jsonl"
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hey"}]
    rows.write_text(
        "\n".join(json.dumps(row) for row in [{"prompt": "hey", "x": 1}, {"prompt": talk}, {"prompt": "hey"}])
    )
    assert read_prompts(str(rows)) == ["hey", join_messages(talk)]
    manners = tmp_path / "manners.jsonl"
    manners.write_text('{"instruction": "Be brief."}\n')
    assert read_instructions(str(manners)) == ["Be brief."]
    assert "rows.jsonl:1: column 'instruction' is missing" in complaint(read_instructions, str(rows))
    assert "no such file" in complaint(read_prompts, str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    assert "no prompts" in complaint(read_prompts, str(tmp_path / "empty.txt"))


def test_a_prompt_without_room_and_a_base_without_a_template_are_refused(base, tmp_path):
    long = items_of(["hey", "bread " * 300], [], SETTINGS)
    assert "do not fit into the 256 positions" in complaint(sample, base, long, SETTINGS, tmp_path / "out.jsonl")
    plain = load_base(str(tiny_policy.base(tmp_path / "plain", template=None)))
    asked = items_of(["hey"], ["Be brief."], SETTINGS)
    said = complaint(sample, plain, asked, SETTINGS, tmp_path / "out.jsonl")
    assert "has no chat template, so it cannot take a system message" in said
    assert not list(tmp_path.glob("out*"))


@pytest.mark.experiments
def test_the_program_samples(directory, whole, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    flags = [f"--base={directory}", f"--prompts={prompts}", "--n=2", "--temperature=0.9", "--max_new=7", "--seed=3"]
    done = run("sample", *flags, f"--out={tmp_path / 'out.jsonl'}")
    assert done.returncode == 0, done.stderr
    assert "Wrote 10 responses" in done.stdout
    assert [row["response"] for row in rows_of(tmp_path / "out.jsonl")] == [row["response"] for row in whole]
    assert_one_clear_line(run("sample", *flags, f"--out={tmp_path / 'out.jsonl'}"), "exists; give another --out")
    assert_one_clear_line(run("sample", *flags), "--base, --prompts and --out are needed")
    assert_one_clear_line(run("sample", *flags, "--n=0", f"--out={tmp_path / 'o.jsonl'}"), "--n=0")


@pytest.mark.devices
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 1)], ids=["devices", "processes"])
def test_devices_and_processes_share_the_responses(directory, whole, tmp_path, processes, devices):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("\n".join(PROMPTS))
    flags = [f"--base={directory}", f"--prompts={prompts}", "--n=2", "--temperature=0.9", "--max_new=7", "--seed=3"]
    command = [sys.executable, "-m", "launch.sample", *flags, "--batch=3", f"--out={out}"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            command += [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={processes}"]
    forced = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": forced}
    running = [
        subprocess.Popen(
            [*command, *([f"--process={i}"] if processes > 1 else [])],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    ended = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0] * processes, ended
    assert [row["response"] for row in rows_of(out)] == [row["response"] for row in whole]
