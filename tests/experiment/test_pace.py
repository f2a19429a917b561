"""How long an evaluation takes, by the last one."""

import json
import os

import pytest

from fssa_jax.experiment.pace import Amount, expected_seconds, pace_of


def report(directory, pace, age):
    directory.mkdir(parents=True)
    path = directory / "report.json"
    path.write_text(pace if isinstance(pace, str) else json.dumps({"pace": pace}))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_newest_report_on_such_a_device_tells_the_time(tmp_path):
    asked = Amount(100, 10)
    assert expected_seconds(tmp_path, asked) is None
    report(tmp_path / "report-val", pace_of(Amount(50, 5), 100.0, 20.0), age=9)
    assert expected_seconds(tmp_path, asked) == pytest.approx(100 * 2 + 10 * 4)
    report(tmp_path / "quick" / "report", pace_of(Amount(50, 5), 50.0, 10.0), age=5)
    assert expected_seconds(tmp_path, asked) == pytest.approx(100 * 1 + 10 * 2)
    report(tmp_path / "report", {**pace_of(Amount(50, 5), 1.0, 1.0), "device": "1 × TPU v5p, 8 cores"}, age=3)
    report(tmp_path / "report-rows", "{", age=1)
    report(tmp_path / "report-other", None, age=0)
    assert expected_seconds(tmp_path, asked) == pytest.approx(120)


def test_what_nobody_did_has_no_pace(tmp_path):
    report(tmp_path / "report", pace_of(Amount(50, 0), 50.0, 0.0), age=0)
    assert expected_seconds(tmp_path, Amount(10, 0)) == pytest.approx(10)
    assert expected_seconds(tmp_path, Amount(10, 1)) is None
