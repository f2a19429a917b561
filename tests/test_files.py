"""Files are written whole or not at all."""

import errno
import os
import time

import pytest

from fssa_jax import files
from fssa_jax.errors import UserError
from tests.mistakes import complaint


def test_a_directory_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "deep" / "dir"
    for content in ("old", "new"):
        with files.whole_directory(path) as target:
            (target / content).write_text(content)
        assert [file.name for file in path.iterdir()] == [content]
    assert os.listdir(path.parent) == ["dir"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "disk full"), UserError),
    ],
)
def test_a_block_that_raises_leaves_the_old_directory(tmp_path, error, seen):
    path = tmp_path / "dir"
    path.mkdir()
    (path / "file").write_text("old")

    def block():
        with files.whole_directory(path) as target:
            (target / "file").write_text("new")
            raise error

    with pytest.raises(seen):
        block()
    assert (path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["dir"]


def test_a_directory_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "dir"
    path.mkdir()
    (path / "file").write_text("old")
    rename = os.rename

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "input/output error")
        rename(source, target)

    def replace():
        with files.whole_directory(path) as target:
            (target / "file").write_text("new")

    monkeypatch.setattr(os, "rename", failing)
    assert complaint(replace).startswith(f"{path}: cannot be written")
    assert (path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["dir"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    files.write_text(path, "größe")
    assert path.read_bytes() == "größe".encode()

    def full(source, target):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert complaint(files.write_text, path, "new") == (
        f"{path}: cannot be written (no space left on device); nothing was changed"
    )
    assert path.read_bytes() == "größe".encode()
    assert os.listdir(path.parent) == ["file"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below"
    assert complaint(files.write_text, path, "x").startswith(f"{path}: cannot be written")
    assert complaint(files.whole_directory(path).__enter__).startswith(f"{path}: cannot be written")


def test_what_killed_processes_left_does_not_keep_a_directory(tmp_path):
    (tmp_path / ".model.safetensors.1.tmp").write_text("half")
    assert files.replaceable(tmp_path, "config.json") == tmp_path
    (tmp_path / "a.txt").write_text("mine")
    assert complaint(files.replaceable, tmp_path, "config.json").startswith(f"{tmp_path}: holds other files")


def test_what_another_host_is_writing_stays_for_a_day(tmp_path):
    """Whether its process runs cannot be told from here."""
    path = tmp_path / f".x.00000000-{2**30}.tmp"
    path.write_text("half")
    files.clean(tmp_path)
    assert path.exists()
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(path, (two_days_ago, two_days_ago))
    files.clean(tmp_path)
    assert not path.exists()
