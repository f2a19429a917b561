"""An example person: their choices, and how the ranking of new responses changes with each."""

import html
import json
from pathlib import Path

import numpy as np

from fssa_jax.data.dataset import Split, choice_records, texts_of
from fssa_jax.data.thresholds import Threshold
from fssa_jax.evaluate.evaluate import Evaluation
from fssa_jax.lm.messages import messages_of, readable
from fssa_jax.people.choices import Choice, as_choice
from fssa_jax.people.person import PersonModel
from fssa_jax.people.rank import rank


def write_example(person: PersonModel, people: Split, result: Evaluation, target: Path) -> str:
    """Writes five choices of a test person and responses to rank, as files for launch.steer. Returns HTML.

    The person is the one with median accuracy among those scored.
    """
    texts = person.task.dataset.texts
    order = np.argsort(result.accuracy_by_user[-1], kind="stable")
    user = int(result.users[order[len(order) // 2]])
    records = choice_records(people, texts, user, 5)
    choices = [as_choice(record, "example") for record in records]
    rng = np.random.default_rng(0)
    sides = (texts[int(np.asarray(side)[user, 1, 0])] for side in (people.table.chosen, people.table.rejected))
    asked = next(prompt for prompt, response in sides if response)
    same = [texts[i] for i in texts_of(people.table, pool=1) if texts[i][0] == asked and texts[i][1]]
    picked = [same[i] for i in sorted(rng.permutation(len(same))[:6])]
    asked_as = {p: messages_of(p) for p, _ in picked}
    responses = [{"prompt": p if len(asked_as[p]) == 1 else asked_as[p], "response": r} for p, r in picked]
    for name, rows in (("example_choices", records), ("example_responses", responses)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (target / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    ranking = rank(person, choices, picked, trace=True)[0]
    said = "".join(_shown(choice) for choice in choices)
    head = "".join(f"<th>{k}</th>" for k in range(len(ranking.probabilities)))
    body = "".join(
        f"<tr><td class=l>{html.escape(ranking.responses[i])}</td>"
        + "".join(f"<td style='background:rgba(39,87,196,{p:.2f})'>{p:.0%}</td>" for p in ranking.probabilities[:, i])
        + "</tr>"
        for i in ranking.order
    )
    return (
        f"<h2>One person</h2><p>{html.escape(people.users[user])}: the test person with median accuracy. "
        f"Their first choices:</p><ol>{said}</ol>"
        f"<p>How likely each response to “{html.escape(readable(asked))}” is to be their favourite, by number of "
        "choices read:</p><div class=t><table>"
        f"<tr><th class=l>response</th>{head}</tr>{body}</table></div>"
    )


def _shown(choice: Choice) -> str:
    """A choice as an item of an HTML list; what is only disliked is struck out."""
    prompt, chosen, *others = choice
    liked = "" if isinstance(chosen, Threshold) else f"<br><b>✓ {html.escape(chosen)}</b>"
    rest = "".join(f"<br><s>{html.escape(other)}</s>" for other in others if not isinstance(other, Threshold))
    return f"<li><span class=p>{html.escape(readable(prompt))}</span>{liked}{rest}</li>"
