"""Where a checkpoint is: what cannot be found is said in one line."""

import os

from fssa_jax.lm.hub import at_hand, find_checkpoint
from tests.mistakes import complaint


def test_a_directory_that_is_not_there_is_named(tmp_path):
    assert "no such directory" in complaint(find_checkpoint, str(tmp_path / "absent"))


def test_a_hub_name_offline_is_one_line(monkeypatch):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    assert not at_hand("someone/nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert complaint(find_checkpoint, "someone/nothing").startswith("someone/nothing: neither a directory")
