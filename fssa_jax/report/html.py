"""report.html: one self-contained page with embedded pictures."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from fssa_jax.config.fields import to_dict
from fssa_jax.report.series import FEW, NORMS, STEERING, series_of

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;max-width:60rem;margin:3rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin-bottom:.2rem} h2{margin-top:2.4rem;font-size:1.2rem} .sub{color:#666}
table{border-collapse:collapse;font-size:.86rem;width:100%} th,td{padding:.35rem .6rem;text-align:right;
border-bottom:1px solid #e8e8e8;font-variant-numeric:tabular-nums} .l{text-align:left} tr.main td{font-weight:600}
figure{margin:1.2rem 0} img{max-width:100%} figcaption{color:#666;font-size:.88rem} s{color:#999} .p{color:#666}
.t{overflow-x:auto} li{margin:.5rem 0}
.warn{overflow-wrap:anywhere;background:#fff3d6;padding:.6rem 1rem;border-radius:.4rem} small{color:#888}
"""


_OF_STEERING = """S = accuracy on people who chose one side + accuracy on people who chose the other − 100, on pairs
that people disagree about: 0 ignores the person, 100 steers perfectly."""


def render(config: Any, report: dict[str, Any], pictures: list[tuple[str, str]], directory: Path, example: str) -> str:
    """The page: the headline, the pictures in `directory` with their captions, an example, and all metrics."""
    ks = [str(k) for k in report["k"]]
    head = "".join(f"<th>k = {k}</th>" for k in ks)

    def row(name: str, label: str, digits: int, scale: float, series: dict[str, Any] | None = None) -> str:
        values = report[name] if series is None else series
        cells = "".join(
            f"<td>{scale * values[k]['mean']:.{digits}f}<br><small>{scale * values[k]['low']:.{digits}f} – "
            f"{scale * values[k]['high']:.{digits}f}</small></td>"
            for k in ks
        )
        return f"<tr{' class=main' if name == 'accuracy' else ''}><td class=l>{label}</td>{cells}</tr>"

    accuracy = [(n, f"{label}, accuracy %") for n, label in series_of(report).items()]
    accuracy += [("accuracy_unseen", "both texts unseen in training"), ("population_unseen", "same, population model")]
    rows = "".join(row(n, label, 1, 100) for n, label in accuracy if report.get(n))
    if report.get("gain"):
        rows += row("gain", "gain over the population model, points", 1, 100)
    for group, its in report.get("by_group", {}).items():
        for name, series in its.items():
            label = "accuracy %" if name == "accuracy" else f"accuracy %, {name}"
            rows += row("", html.escape(f"{group}: {label}"), 1, 100, series)
    steering = STEERING | {f"{name}_steering": series_of(report)[name] for name in FEW}
    rows += "".join(row(n, f"steering score S, {label}", 1, 100) for n, label in steering.items() if report.get(n))
    other = [("nll", "NLL, nats"), ("bayes_nll", "NLL of the Bayes limit"), ("ece", "calibration error ECE")]
    rows += "".join(row(n, label, 3, 1) for n, label in other if report.get(n))
    for name, label in NORMS.items():
        if norms := report.get("latent", {}).get(name):
            rows += f"<tr><td class=l>{label}</td>{''.join(f'<td>{norms[k]:.2f}</td>' for k in ks)}</tr>"
    figures = "".join(
        f"<figure><img alt='{html.escape(caption)}' src='data:image/png;base64,"
        f"{base64.b64encode((directory / name).read_bytes()).decode()}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for name, caption in pictures
    )
    warnings = "".join(f"<p class=warn>{html.escape(w)}</p>" for w in report["warnings"])
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in report.get("verdict", {}).get("lines", []))
    verdict = f"<ul class=verdict>{lines}</ul>" if lines else ""
    users = report["users"]
    first, last = ks[0], ks[-1]
    gain = 100 * (report["accuracy"][last]["mean"] - report["accuracy"][first]["mean"])
    left_out = f" {len(users['left_out'])} users with fewer than {last} context choices are not scored."
    left_out = left_out if users["left_out"] else ""
    devices = html.escape(", ".join(report["run"].get("devices", [])))
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(config.name)} — report</title>
<meta name=viewport content="width=device-width,initial-scale=1"><style>{_STYLE}</style>
<h1>{html.escape(config.name or "Report")}</h1>
<p class=sub>{users["scored"]} held-out users, {report["targets"]["rows"]} of their choices predicted,
{users["draws"]} random contexts each ({html.escape(report["data"])}).{left_out} Seed {report["seed"]}, {devices}.</p>
{warnings}{verdict}<p>With {last} choices of a person in its context the model predicts
<b>{100 * report["accuracy"][last]["mean"]:.1f} %</b> of the person's other choices,
{abs(gain):.1f} points {"more" if gain >= 0 else "less"} than with {first}.</p>
{figures}{example}
<h2>All figures</h2><div class=t><table>
<tr><th class=l>mean over users, 95 % interval</th>{head}</tr>{rows}</table></div>
<p class=sub>The same targets for every k; contexts are nested and share no text with the targets, or no
situation where texts repeat by design. Ties count ½.
{_OF_STEERING if report.get("steering") else ""}</p>
<details><summary>Configuration</summary><pre class=t>{html.escape(json.dumps(to_dict(config), indent=1))}</pre>
</details></html>
"""
