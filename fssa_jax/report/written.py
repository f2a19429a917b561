"""A policy's generated responses, as a section of report.html and as files."""

import html
import json
from pathlib import Path
from typing import Any

from fssa_jax.lm.messages import readable
from fssa_jax.report.tables import generation_table

_SIDE_BY_SIDE = 4


def write_responses(written: dict[str, Any], target: Path) -> None:
    """Writes responses.json, and the choices of two people as files for launch.steer."""
    text = json.dumps(written, ensure_ascii=False, indent=1)
    (target / "responses.json").write_text(text, encoding="utf-8")
    for name, person in zip(("person_a", "person_b"), written.get("opposed", []), strict=False):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in person["choices"])
        (target / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def written_section(report: dict[str, Any], written: dict[str, Any]) -> str:
    """The metrics, the responses side by side, and the mixtures of two people, as HTML."""
    generation = report.get("generation", {})
    if not written:
        return ""
    names = list(written["texts"])
    shown = [name for name in ("base", "population", "specialist") if name in names] + names[-1:]
    head = "".join(f"<th class=l>{html.escape(name)}</th>" for name in shown)
    prompts = len(written["prompts"]) // max(len(set(written["people"])), 1)
    body = "".join(
        f"<tr><td class=l>{html.escape(written['people'][i])}<br>"
        f"<span class=p>{html.escape(readable(written['prompts'][i]))}</span></td>"
        + "".join(f"<td class=l>{html.escape(written['texts'][name][i])}</td>" for name in shown)
        + "</tr>"
        for i in range(0, min(_SIDE_BY_SIDE * prompts, len(written["prompts"])), prompts)
    )
    table = generation_table(report)
    cells = [
        "".join(f"<td{' class=l' if i == 0 else ''}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
        for row in table
    ]
    figures = "".join(f"<tr>{row}</tr>" for row in cells)
    number = f"{generation['responses']} responses for {generation['people']} people."
    out = f"<h2>Generated responses</h2><p class=sub>{number}</p><div class=t><table>{figures}</table></div>"
    out += "<h2>Written for people</h2><div class=t><table>"
    out += f"<tr><th class=l>person, prompt</th>{head}</tr>{body}</table></div>"
    blend = generation.get("blend", {})
    if blend.get("texts"):
        cells = "".join(
            f"<tr><td class=l>{t:g}</td><td class=l>{html.escape(text)}</td></tr>"
            for t, text in zip(blend["t"], blend["texts"], strict=True)
        )
        out += (
            f"<h2>From one person to another</h2><p class=sub>{html.escape(readable(blend['prompt']))}</p>"
            "<div class=t><table><tr><th class=l>t</th><th class=l>written for (1 − t) · A + t · B</th></tr>"
            f"{cells}</table></div>"
        )
    return out
