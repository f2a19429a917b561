"""Work directories of policies: a base may move and is known by its contents; what does not fit is named."""

import copy
import json
import logging
import shutil

import numpy as np
import pytest

from fssa_jax.config import Evaluation, NewEncoder
from fssa_jax.data.tokenised import tokenise
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.load import load
from fssa_jax.experiment.make import make
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.people.choices import read_choices
from fssa_jax.people.side_by_side import write_for
from fssa_jax.tasks import reference
from fssa_jax.tasks.reference import stored_reference
from tests import small_lm, tiny, tiny_policy
from tests.mistakes import complaint, outcome
from tests.policy_steps import with_encoder
from tests.tiny_policy import change
from tests.trees import assert_same


@pytest.fixture(scope="module")
def made(steered):
    """The work directory of a policy that has been trained."""
    return Workdir.open(steered)


@pytest.mark.experiments
def test_a_base_may_move_and_is_known_by_its_contents(steered, made, tmp_path):
    """`--base`, and for training `config.policy.base`, name it anew; only where the old place is gone."""
    config = copy.deepcopy(made.config)
    here, gone = tmp_path / "here", str(tmp_path / "gone")
    shutil.copytree(config.policy.base, here)
    assert "was trained with config.policy.base" in complaint(
        make, change(copy.deepcopy(config), {"policy.base": str(here)}), steered
    )
    moved = tmp_path / "moved"
    shutil.copytree(steered, moved)
    text = (moved / "config.json").read_text()
    for name in (config.policy.base, config.encoder.init_from):
        text = text.replace(json.dumps(name), json.dumps(gone))
    (moved / "config.json").write_text(text)
    tiny.reseal(moved)
    assert f"its language model is not in {gone}" in complaint(Workdir.open, moved)
    assert Workdir.open(moved, str(here)).task.base.fingerprint == made.task.base.fingerprint
    # Training goes on with it, also where a policy has not begun and starts from the encoder.
    shutil.rmtree(moved / "checkpoints")
    (moved / "metrics.jsonl").unlink()
    train(change(copy.deepcopy(config), {"policy.base": str(here)}), moved)
    assert_same(Workdir.open(moved, str(here)).trained(), made.trained())
    run = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(run | {"encoder": "of another"}))
    tiny.reseal(moved)
    again = change(copy.deepcopy(config), {"policy.base": str(here)})
    assert "is another reward model than it was started with" in complaint(make, again, moved)
    choices = read_choices(tiny.write_rows(tmp_path / "mine.jsonl", tiny.rows(users=1)[:2]))
    assert "its language model is not in" in complaint(load, moved)
    [[_, after]] = write_for(load(moved, str(here)), ["question 0"], {"mine": choices}, counted=True)
    assert after.name == "after 2 choices"
    file = moved / "config.json"  # nothing is written for anybody
    file.write_text(
        file.read_text().replace('"people": 4', '"people": 0').replace('context_users": 2', 'context_users": 0')
    )
    tiny.reseal(moved)
    report = evaluate_workdir(moved, ks=(0,), base=str(here))
    assert report["k"] == [0]
    assert "generation" not in report
    other = tiny_policy.base(tmp_path / "other")
    (other / "model.safetensors").write_bytes(_changed(other / "model.safetensors"))
    (other / "digests.json").unlink()
    assert "adapters are of another language model" in complaint(Workdir.open, moved, str(other))


def test_a_reference_that_is_damaged_is_named(steered, made, tmp_path):
    content = (steered / "reference.npz").read_bytes()
    for spoilt in (b"", content[:100], content[:-200]):
        (tmp_path / "reference.npz").write_bytes(spoilt)
        message = complaint(stored_reference, made.task.base, made.task.tokens, tmp_path / "reference.npz")
        assert "reference.npz: damaged" in message
        assert "remove it to have it made again" in message


def test_the_reference_is_shared_by_work_directories_and_a_damaged_copy_is_made_anew(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = made.task.base, made.task.tokens
    values = stored_reference(*given, tmp_path / "one" / "reference.npz")
    monkeypatch.setattr(reference, "table_log_probs", lambda *_: pytest.fail("computed again"))
    again = stored_reference(*given, tmp_path / "two" / "reference.npz")
    np.testing.assert_array_equal(values, again)
    assert (tmp_path / "two" / "reference.npz").is_file()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    [shared] = (tmp_path / "cache").rglob("*.npz")
    shared.write_bytes(shared.read_bytes()[:50])
    np.testing.assert_array_equal(stored_reference(*given, tmp_path / "three" / "reference.npz"), values)
    assert shared.stat().st_size > 50
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # nothing can be kept there
    np.testing.assert_array_equal(stored_reference(*given, tmp_path / "four" / "reference.npz"), values)


def test_the_base_and_the_reference_of_another_are_named(steered, made, tmp_path):
    """The reference of another base, and of other texts."""
    config = copy.deepcopy(made.config)
    other = tiny_policy.base(tmp_path / "other")
    (other / "model.safetensors").write_bytes(_changed(other / "model.safetensors"))
    (other / "digests.json").unlink()
    moved = change(copy.deepcopy(config), {"policy.base": str(other)})
    assert "was trained with config.policy.base" in complaint(make, moved, steered)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(steered, spoilt)
    before = (spoilt / "config.json").read_text()
    (spoilt / "config.json").write_text(before.replace(json.dumps(config.policy.base), json.dumps(str(other))))
    tiny.reseal(spoilt)
    assert "adapters are of another language model" in complaint(Workdir.open, spoilt)
    run = json.loads((spoilt / "run.json").read_text())
    (spoilt / "run.json").write_text(json.dumps({name: value for name, value in run.items() if name != "base"}))
    tiny.reseal(spoilt)
    assert "log-probabilities of another language model" in complaint(Workdir.open, spoilt)
    with np.load(steered / "reference.npz") as arrays:
        stamp = json.loads(str(arrays["stamp"])) | {"texts": "of other texts"}
        np.savez(spoilt / "reference.npz", stamp=json.dumps(stamp), log_probs=arrays["log_probs"])
    (spoilt / "config.json").write_text(before)
    tiny.reseal(spoilt)
    assert "other texts or another tokenizer" in complaint(Workdir.open, spoilt)


def test_a_template_gets_the_date_on_which_the_work_directory_was_made(finished, tmp_path):
    base = tiny_policy.base(tmp_path / "base", small_lm.DATED)
    work = make(tiny_policy.config(finished[0] / "rows.jsonl", base), tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["date"] == work.task.base.tokenizer.date
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"date": "2024-07-26"}))
    tiny.reseal(tmp_path / "run")
    assert Workdir.open(tmp_path / "run").task.base.tokenizer.date == "2024-07-26"


def test_a_response_that_was_cut_off_is_never_closed(finished, tmp_path):
    """Neither in training, nor after the data set was stored, nor of people who come later."""
    rows, base = tiny.rows(), tiny_policy.base(tmp_path / "base")
    rows[3]["unfinished"] = [True, False]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    make(tiny_policy.config(path, base), tmp_path / "run")
    work = Workdir.open(tmp_path / "run")
    tokens, tokenizer = work.task.tokens, work.task.base.tokenizer

    def closed(work):
        tokens = work.task.tokens
        return {
            text[1]: tokens.tokens[i, tokens.ends[i] - 1] in tokenizer.stop_tokens
            for i, text in enumerate(work.dataset.texts)
            if tokens.lengths[i]
        }

    found = closed(work)
    assert not found.pop(rows[3]["response_a"])
    assert all(found.values())
    i = work.dataset.texts.index((rows[3]["prompt"], rows[3]["response_a"]))
    whole = tokenizer.encode(rows[3]["prompt"], rows[3]["response_a"], end_of_turn=False)
    assert tokens.tokens[i, : tokens.ends[i]].tolist() == whole.tokens
    others = [{**row, "user_id": f"new {row['user_id']}"} for row in tiny.rows(users=3, seed=7)]
    others[2]["unfinished"] = [False, True]
    wider, _ = work.with_people(str(tiny.write_rows(tmp_path / "others.jsonl", others)))
    later = closed(wider)
    assert [text for text, ends in later.items() if not ends] == [rows[3]["response_a"], others[2]["response_b"]]


def test_texts_that_spell_a_special_token_are_counted(made, caplog):
    tokenise(made.task.base, [("p", "word1 <|end|> word2"), ("p", "word1")], 64, "drop")
    assert "1 prompts or responses contain the string of a special token" in caplog.text


def test_what_does_not_belong_together_is_named(steered, finished, made, tmp_path):
    directory, _ = finished
    for start, words in ((directory / "absent", "no config.json"), (steered, "no work directory of a reward model")):
        wrong = change(copy.deepcopy(made.config), {"encoder.init_from": str(start)})
        assert words in complaint(make, wrong, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    wrong = change(copy.deepcopy(made.config), {"evaluate.k": (0, 99)})
    assert "config.evaluate.k: 99 is larger than any context" in complaint(make, wrong, tmp_path / "k")
    wrong = change(copy.deepcopy(made.config), {"policy.max_length": 1000})
    assert "config.policy.max_length: 1000 is more than the 256 positions" in complaint(make, wrong, tmp_path / "n")


def test_the_default_k_are_those_that_people_have_choices_for(tmp_path, caplog):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(number=8)))
    config.evaluate.k = Evaluation().k
    with caplog.at_level(logging.INFO):
        assert make(config, tmp_path / "run").config.evaluate.k == (0, 1, 3)
    assert "less than half of the people have more choices: config.evaluate.k=(0, 1, 3)" in caplog.text
    assert make(config, tmp_path / "run").config.evaluate.k == (0, 1, 3)


def test_a_work_directory_of_another_kind_of_experiment_is_refused(steered, finished, made):
    directory, config = finished
    assert "config.kind='PolicyConfig', not 'RewardConfig'" in complaint(make, config, steered)
    assert "config.kind='RewardConfig', not 'PolicyConfig'" in complaint(make, made.config, directory / "run")


def _changed(file):
    from safetensors.numpy import load, save

    tensors = load(file.read_bytes())
    return save({name: tensor + 1 for name, tensor in tensors.items()})


def test_choices_about_texts_that_are_too_long_are_left_out_and_counted(made, tmp_path, caplog):
    records = tiny.rows()
    records[3]["response_a"] += " word1" * 5
    config = with_encoder(made.config, NewEncoder)
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", records))
    config.policy.max_length = int(made.task.tokens.lengths.max())
    work = make(config, tmp_path / "run")
    lost = work.dataset.report["left_out_rows"]["of texts that are too long"]
    assert lost == 1
    assert f"{lost} choices about texts that are too long are left out" in caplog.text
    lengths = work.task.tokens.lengths
    for split in work.dataset.splits.values():
        real = np.asarray(split.table.mask)
        assert (lengths[np.asarray(split.table.chosen)[real]] > 0).all()
        assert (lengths[np.asarray(split.table.rejected)[real]] > 0).all()


@pytest.mark.faults
def test_no_flipped_bit_of_the_reference_is_read(steered, made, tmp_path):
    """The archive has a checksum of its own; a flip of what has no meaning may pass."""
    content = (steered / "reference.npz").read_bytes()
    expected = stored_reference(made.task.base, made.task.tokens, steered / "reference.npz")
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (tmp_path / "reference.npz").write_bytes(flipped)
        read = lambda: stored_reference(made.task.base, made.task.tokens, tmp_path / "reference.npz")  # noqa: E731
        values, message = outcome(read)
        refused += bool(message)
        if not message:
            np.testing.assert_array_equal(values, expected)
    assert refused > 200
