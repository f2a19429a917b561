"""Rows in the format of TRL: pairs, prompts of messages, and nothing lost on the way back."""

from fssa_jax.data.reading import read_rows
from fssa_jax.data.rows import Row
from fssa_jax.experiment.prepare import PrepareConfig, trl_records, write_trl
from fssa_jax.lm.messages import join_messages
from tests import tiny


def test_rows_become_those_of_trl_and_come_back(tmp_path):
    source = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=4))
    _, number = write_trl(PrepareConfig().data, str(source), tmp_path / "trl.jsonl")
    before, after = (read_rows(str(path))[0] for path in (source, tmp_path / "trl.jsonl"))
    assert number == len(before) == len(after)
    assert [(r.user, r.prompt, r.responses, r.group) for r in before] == [
        (r.user, r.prompt, r.responses, r.group) for r in after
    ]


def test_one_of_several_becomes_a_pair_with_each_of_the_others():
    records = trl_records(Row("ann", "p", "a", "b", ("c", "d")))
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in records] == [
        ("a", "b"),
        ("a", "c"),
        ("a", "d"),
    ]


def test_a_prompt_of_several_messages_stays_one():
    turns = [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "bread?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    [record] = trl_records(Row("ann", join_messages(messages), "a", "b"))
    assert record["prompt"] == messages
