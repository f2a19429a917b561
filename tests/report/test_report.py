"""Tables, pictures and pages of a report: names may be any text, and notes stand where they mean something."""

import numpy as np
import pytest

from fssa_jax.report import plots
from fssa_jax.report.html import render
from fssa_jax.report.tables import format_table
from tests import tiny

CELLS = {"0": {"mean": 0.5, "low": 0.4, "high": 0.6}}


def report(group: str = "group", **changes) -> dict:
    """A small report of one group."""
    return {
        "k": [0],
        "accuracy": CELLS,
        "by_group": {group: {"accuracy": CELLS}},
        "users": {"scored": 2, "left_out": [], "draws": 1},
        "targets": {"rows": 5},
        **{"step": 7, "seed": 0, "warnings": [], "run": {}, "data": "test split"},
        **changes,
    }


def page(of: dict, directory) -> str:
    return render(tiny.config(), of, [], directory, "")


def test_a_table_shows_control_characters_of_names():
    table = format_table(report("\x1b[31mred\nx"))
    assert "\\x1b[31mred\\nx, %" in table
    assert len(table.splitlines()) == len(format_table(report()).splitlines())


def test_a_page_escapes_names(tmp_path):
    text = page(report("<b>bold</b>"), tmp_path)
    assert "&lt;b&gt;bold&lt;/b&gt;: accuracy" in text
    assert "<b>bold" not in text


def test_a_page_fits_a_narrow_screen(tmp_path):
    text = page(report(), tmp_path)
    assert '<meta name=viewport content="width=device-width' in text
    assert text.count("<table") == text.count("<div class=t><table") > 0


@pytest.mark.parametrize("steering", [None, CELLS])
def test_a_page_explains_the_steering_score_where_there_is_one(tmp_path, steering):
    text = page(report(steering=steering), tmp_path)
    assert ("accuracy on people who chose one side" in text) == (steering is not None)


def test_a_legend_has_every_name(tmp_path, monkeypatch):
    """Matplotlib leaves out those that begin with an underscore."""
    figures = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    names = ["_a", "b", "$x_$", "\x1b[31mred"]
    plots.latents(np.eye(4), np.arange(4), names, tmp_path / "latents.png")
    monkeypatch.undo()
    [figure] = figures
    shown = [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]
    plots.plt.close(figure)
    assert shown == ["_a", "b", "$x_$", "\\x1b[31mred"]
