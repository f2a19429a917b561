"""One person as an example: their choices, and how the ranking of new responses moves with each."""

import html
import json
from pathlib import Path

import numpy as np

from fssa_jax.data.dataset import Split, texts_of
from fssa_jax.data.rows import Row
from fssa_jax.evaluate.evaluate import Evaluation
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.people.rank import rank


def write_example(work: Workdir, people: Split, result: Evaluation, target: Path) -> str:
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
        record = {
            "user_id": people.users[user],
            "prompt": prompt,
            "response_a": first,
            "response_b": second,
            "choice": choice,
        }
        lines.append(json.dumps(record, ensure_ascii=False))
        choices.append(Row(people.users[user], prompt, a, b))
    rng = np.random.default_rng(0)
    asked = texts[int(np.asarray(table.chosen)[user, 1, 0])][0]
    same = [texts[i] for i in texts_of(table, pool=1) if texts[i][0] == asked]
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
