"""The evaluation of a work directory: report.json, pictures, and one report.html that opens by itself."""

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax import plots
from fssa_jax.data import synthetic
from fssa_jax.data.dataset import Split
from fssa_jax.data.rows import Row
from fssa_jax.episodes import truncate_context
from fssa_jax.evaluate import Evaluation, Trained, collapse_warnings, evaluate
from fssa_jax.files import whole_directory
from fssa_jax.page import SERIES, render
from fssa_jax.predict import evaluation_episodes, make_predictor
from fssa_jax.steer import rank
from fssa_jax.workdir import Workdir

_USERS_SHOWN = 4
_FEW_USERS = 10


def evaluate_workdir(workdir: Path, data: str = "", split: str = "test", ks: tuple[int, ...] = ()) -> dict[str, Any]:
    """Evaluates a trained work directory and writes its report/ whole. Returns report.json.

    Args:
      data: rows of other people, every one of whom is scored who was not trained on; empty for the split of the
        workdir's data.
      ks: context sizes; the configuration's if empty.

    Raises:
      UserError: no or damaged work directory, bad rows, k larger than any context.
    """
    work = Workdir.open(workdir)
    main = work.trained()
    assert main is not None
    # All models first: rows that are added below bring texts that they were not made for.
    population = work.trained("population") or _itself_if_population(main)
    oracle = None if data else work.trained("oracle")
    people = work.add_rows(data) if data else work.dataset.splits[split]
    settings = dataclasses.replace(work.config.evaluate, k=ks or work.config.evaluate.k)
    result = evaluate(
        main,
        people,
        work.dataset,
        settings,
        population=population,
        oracle=oracle,
        seed=work.config.seed,
    )
    result.report["data"] = data or f"{split} split"
    result.report["config"] = work.config.name
    result.report["seed"] = work.config.seed
    result.report["run"] = work.run
    health = result.report.get("latent", {})
    several = len(result.report["k"]) > 1
    scored = result.report["users"]["scored"]
    result.report["step"] = main.step
    result.report["warnings"] = work.unfinished()
    if scored < _FEW_USERS:
        result.report["warnings"].append(f"only {scored} people are scored: the figures say little; give more people")
    unknown = result.report["targets"]["unseen"] / max(result.report["targets"]["rows"], 1)
    if main.model.learnt_texts and main.model.target == "none" and unknown > 0.5:
        result.report["warnings"].append(
            f"{unknown:.0%} of the choices are about texts that were never judged in training, and this model knows no "
            "others; train with --config.model.learn_texts=no"
        )
    elif health and scored > 1:
        result.report["warnings"] += collapse_warnings(health, health["context_effect"] if several else None)
    with whole_directory(report_directory(workdir, data, split)) as target:
        (target / "report.json").write_text(json.dumps(result.report, indent=1), encoding="utf-8")
        pictures = _draw(work, main, people, result, target)
        ranking = _example(work, people, result, target) if not data else ""
        page = render(work.config, result.report, pictures, target, ranking)
        (target / "report.html").write_text(page, encoding="utf-8")
    return result.report


def report_directory(workdir: Path, data: str = "", split: str = "test") -> Path:
    """report/ for the test users; report-val/ and report-NAME/ for validation users and other people's rows."""
    name = Path(data).name.split(".")[0] if data else "" if split == "test" else split
    return workdir / (f"report-{name}" if name else "report")


def format_table(report: dict[str, Any]) -> str:
    """The series as text, in per cent, one column a k."""
    ks = [str(k) for k in report["k"]]
    lines = [f"{'':26s}" + "".join(f"{'k = ' + k:>16s}" for k in ks)]
    rows = [(name, label) for name, label in SERIES.items() if report.get(name)]
    rows += [(name, name.replace("_", " ")) for name in ("steering", "bayes_steering", "control_steering")
             if report.get(name)]  # fmt: skip
    rows += [(name, name.replace("_", " ")) for name in ("accuracy_unseen", "population_unseen") if report.get(name)]
    for name, label in rows:
        cells = (f"{100 * report[name][k]['mean']:.1f} ±{_half_width(report[name][k]):.1f}" for k in ks)
        lines.append(f"{label + ', %':26s}" + "".join(f"{cell:>16s}" for cell in cells))
    for name, label in (("nll", "NLL, nats"), ("bayes_nll", "Bayes NLL"), ("ece", "ECE")):
        if report.get(name):
            lines.append(f"{label:26s}" + "".join(f"{report[name][k]['mean']:16.3f}" for k in ks))
    users, targets = report["users"], report["targets"]
    lines.append(f"{users['scored']} people, {targets['rows']} choices; checkpoint of step {report['step']}")
    return "\n".join(lines)


def _half_width(cell: dict[str, float]) -> float:
    return 50 * (cell["high"] - cell["low"])


def _itself_if_population(main: Trained) -> Trained | None:
    """A model without latent is its own population model."""
    return main if main.model.latent == "none" else None


def _draw(work: Workdir, main: Trained, people: Split, result: Evaluation, target: Path) -> list[tuple[str, str]]:
    """Writes the pictures; returns (file name, caption) of each."""
    pictures = [("accuracy.png", "Accuracy on a person's other choices against the number of choices seen. Bands: 95 % over users.")]  # fmt: skip  # noqa: E501
    plots.accuracy_curves(result.report, target / "accuracy.png")
    if main.model.latent != "context":
        return pictures
    # Users at even distances in the order of their accuracy: neither the best nor the worst alone.
    order = np.argsort(result.accuracy_by_user[-1], kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(_USERS_SHOWN, len(order))).round().astype(int)]
    rows = result.users[shown]
    names = [people.users[i] for i in rows]
    table = jax.tree.map(jnp.asarray, people.table)
    ks = result.report["k"]
    episodes = evaluation_episodes(work.config.seed, 0, table, jnp.asarray(rows), max_context=max(ks))
    if work.config.data.source.startswith("synthetic"):
        _synthetic_curves(main, episodes, work, names, ks, target / "curves.png")
        caption = "Inferred reward curves of four users as the context grows, and their true reward."
    else:
        steps = tuple(range(max(ks) + 1))
        features = jnp.asarray(work.dataset.features)
        log_p, _, _ = make_predictor(main.model, work.config.evaluate.samples)(
            main.variables, features, episodes, steps
        )
        real = np.asarray(episodes.targets.mask)
        curves = [np.exp(log_p[:, i][:, real[i]]) for i in range(len(rows))]
        plots.reward_traces(names, curves, target / "curves.png")
        caption = "Four users, from the least to the most accurately predicted: what the model thinks of each of their later choices as it reads more of their context."  # noqa: E501
    pictures.append(("curves.png", caption))
    colour, labels = _latent_colours(work, people, result.users)
    plots.latents(result.latents, colour, labels, target / "latents.png")
    pictures.append(("latents.png", "Latents z of the users after the longest context, on two principal components."))
    return pictures


def _synthetic_curves(main, episodes, work: Workdir, names, ks, path: Path) -> None:
    y = np.linspace(0, 1, 201, dtype=np.float32)

    def apply(module, context):
        z = module.infer(context, jnp.asarray(work.dataset.features)).mean
        features = jnp.broadcast_to(jnp.asarray(y)[None, :, None], (z.shape[0], len(y), 1))
        return module.rewards(features, z[None])[0, :, :, 0]

    curves = [
        np.asarray(main.model.apply(main.variables, truncate_context(episodes, k).context, method=apply)) for k in ks
    ]
    inferred = {name: np.stack([curve[i] for curve in curves]) for i, name in enumerate(names)}
    kinds = np.asarray(episodes.group)
    true = {name: np.asarray(synthetic.reward(jnp.asarray(y), int(kinds[i]))) for i, name in enumerate(names)}
    plots.reward_curves(y, inferred, true, ks, path)


def _latent_colours(work: Workdir, people: Split, users: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """By group where there are few; by what the people truly want where that is known; else the largest groups."""
    group = np.asarray(people.table.group)[users]
    names = work.dataset.groups
    if len(names) > 12 and work.dataset.truth is not None:
        wanted = work.dataset.truth.rewards[:, group].T
        centred = wanted - wanted.mean(0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        return centred @ direction, None
    largest = np.argsort(-np.bincount(group, minlength=len(names)), kind="stable")[:9]
    place = {int(g): i for i, g in enumerate(largest)}
    other = len(largest)
    colour = np.array([place.get(int(g), other) for g in group])
    labels = [names[g] or "all" for g in largest] + (["other groups"] if (colour == other).any() else [])
    return colour, labels


def _example(work: Workdir, people: Split, result: Evaluation, target: Path) -> str:
    """Five choices of a test person, and responses to rank, as files for launch.steer; the ranking as HTML.

    The person is the one of median accuracy among those scored.
    """
    if not any(response for _, response in work.dataset.texts[:1]) or work.config.model.kind != "np_btl":
        return ""
    order = np.argsort(result.accuracy_by_user[-1], kind="stable")
    user = int(result.users[order[len(order) // 2]])
    table, texts = people.table, work.dataset.texts
    n = min(5, int(np.asarray(table.count)[user, 0]))
    choices, lines = [], []
    for i in range(n):
        (prompt, a), (_, b) = (texts[int(np.asarray(side)[user, 0, i])] for side in (table.chosen, table.rejected))
        # Either place for the chosen response, so that the file looks like any other.
        first, second, choice = (a, b, 0) if i % 2 == 0 else (b, a, 1)
        record = {"user_id": people.users[user], "prompt": prompt, "response_a": first, "response_b": second,
                  "choice": choice}  # fmt: skip
        lines.append(json.dumps(record, ensure_ascii=False))
        choices.append(Row(people.users[user], prompt, a, b))
    rng = np.random.default_rng(0)
    asked = texts[int(np.asarray(table.chosen)[user, 1, 0])][0]
    same = [text for text in _test_texts(people, texts) if text[0] == asked]
    picked = [same[i] for i in sorted(rng.permutation(len(same))[:6])]
    (target / "example_choices.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = (json.dumps({"prompt": p, "response": r}, ensure_ascii=False) for p, r in picked)
    (target / "example_responses.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    ranking = rank(work, choices, picked)[0]
    said = "".join(
        f"<li><span class=p>{html.escape(c.prompt)}</span><br><b>✓ {html.escape(c.chosen)}</b>"
        f"<br><s>{html.escape(c.rejected)}</s></li>"
        for c in choices
    )
    head = "".join(f"<th>{k}</th>" for k in range(len(ranking.probabilities)))
    body = "".join(
        f"<tr><td class=l>{html.escape(ranking.responses[i])}</td>"
        + "".join(f"<td style='background:rgba(39,87,196,{p:.2f})'>{p:.0%}</td>" for p in ranking.probabilities[:, i])
        + "</tr>"
        for i in ranking.order
    )
    return (
        f"<h2>One person</h2><p>{html.escape(people.users[user])}: the test person of median accuracy. "
        f"Their first choices:</p><ol>{said}</ol><p>How likely each response to “{html.escape(asked)}” is to be "
        f"their favourite, after so many of these choices:</p><table><tr><th class=l>response</th>{head}</tr>{body}"
        "</table>"
    )


def _test_texts(people: Split, texts: list) -> list:
    table = people.table
    real = np.arange(table.chosen.shape[2]) < np.asarray(table.count)[:, 1:]
    ids = np.unique(np.concatenate([np.asarray(s)[:, 1][real] for s in (table.chosen, table.rejected)]))
    return [texts[i] for i in ids]
