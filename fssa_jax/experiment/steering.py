"""What steers a language model, as one small directory: without people, checkpoints or the model itself.

DIR/
  steering.json         the configuration, the fingerprint of the language model, and how it was trained
  steering.safetensors  the variables: encoder, hypernetwork and the shared factors of the adapters
  tfidf.json, …         the featuriser of texts
  adapter_config.json, adapter_model.safetensors
                        if the base was a LoRA of the language model: that LoRA, in the format of PEFT
  pairs.jsonl           pairs of responses to ask a new person about
  README.md             what it is, for people
"""

import copy
import itertools
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from fssa_jax.config import FrozenEncoder, PolicyConfig, WarmEncoder
from fssa_jax.config.experiment import check
from fssa_jax.config.fields import from_dict, read_json, to_dict
from fssa_jax.data.dataset import (
    SPLITS,
    Dataset,
    Split,
    choice_records,
    featuriser_kind,
    featuriser_of_texts,
    load_featuriser,
    make_table,
)
from fssa_jax.data.features import EncoderFeaturiser, GivenFeaturiser
from fssa_jax.errors import UserError
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import check_digests, replaceable, whole_directory, with_checksum, write_digests
from fssa_jax.lm.base import Base, load_base
from fssa_jax.lm.hub import is_here
from fssa_jax.lm.peft import is_lora, write_lora
from fssa_jax.lm.token_table import no_texts
from fssa_jax.people.person import PersonPolicy
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.checkpoint import flatten, nest

_log = logging.getLogger(__name__)

_FORMAT = 1
_SETTINGS, _WEIGHTS, PAIRS = "steering.json", "steering.safetensors", "pairs.jsonl"
_FROM = "steering"  # stands for the work directory of the encoder, whose variables are here

_CARD = """---
{hub}library_name: fssa_jax
tags: [steering, preferences, fssa_jax]
---

# Steering weights for {base}

They turn a person's choices into an adapter of {base}, with no gradient step for the person (NP-DPO, arXiv
2412.13998): an encoder that infers a latent from the choices, a hypernetwork, and low-rank factors that all people
share. {lora}{size:.1f} MB.

```bash
python -m launch.chat --steering={name}
python -m launch.steer --workdir={name} --choices=choices.jsonl --prompt="How do I get started with chess?"
```

Base: `{base}`, fingerprint{with_lora} `{fingerprint}`.
Trained with `{command}`, seed {seed}; the checkpoint of step {step}.
{notes}
"""

_WITH_LORA = "The base was fine-tuned with a LoRA for everybody, which is here too. "


def is_steering(path: Path) -> bool:
    """Whether `save_steering` wrote this directory."""
    return (path / _SETTINGS).is_file()


def save_steering(work: Workdir, out: Path, pairs: int = 24, notes: str = "", examples: Sequence[Path] = ()) -> int:
    """Writes what steers the language model of a policy; returns the number of bytes.

    Args:
      work: the work directory of a policy.
      out: the directory to write, atomically.
      pairs: maximum number of pairs of responses to ask new people about, from the contexts of validation people.
      notes: a paragraph for the card.
      examples: files to put next to the weights, such as choices of people to try.

    Raises:
      UserError: not a policy that reads choices, or one that needs its texts or given vectors.
    """
    task = work.task
    if not isinstance(task, PolicyTask) or task.reward is None:
        raise UserError(f"{work.path}: not the work directory of a policy that reads choices; give one of np_dpo")
    dataset, config = task.dataset, copy.deepcopy(task.config)
    if task.reward.learnt_texts or isinstance(featuriser_of_texts(dataset.featuriser), GivenFeaturiser):
        raise UserError(
            f"{work.path}: its encoder knows texts by learnt or given vectors, so it needs all of them; give the work "
            "directory itself to others, or train np_btl with --config.model.learn_texts=no and features of texts"
        )
    if absent := next((file for file in examples if not file.is_file()), None):
        raise UserError(f"{absent}: no such file")
    found = work.trained()
    assert found is not None  # it raises for the main model
    variables, step = found
    if isinstance(config.encoder, FrozenEncoder | WarmEncoder):
        config.encoder.init_from = _FROM
    if hasattr(config.data, "path"):
        config.data.path = _FROM  # type: ignore[union-attr]
    run = work.run
    for warning in work.unfinished((MAIN,)):
        _log.warning("%s", warning)
    if task.base.lora is not None:
        config.policy.base = task.base.lora.base
    facts = {
        "format": _FORMAT,
        "config": to_dict(config),
        "base": task.base.fingerprint,
        "date": run.get("date", ""),
        "featuriser": featuriser_kind(dataset.featuriser),
        "features": int(dataset.features.shape[1]),
        "levels": list(dataset.report.get("levels", ())),
        "command": " ".join(map(_without_directories, run.get("command", []))),
        "step": step,
    }
    tensors = {name: np.array(leaf, order="C") for name, leaf in flatten(variables).items()}  # keeps scalars
    out = replaceable(out, _SETTINGS)
    with whole_directory(out) as target:
        dataset.featuriser.save(target)
        if task.base.lora is not None:
            write_lora(target, task.base.lora)
        save_file(tensors, str(target / _WEIGHTS))
        (target / _SETTINGS).write_text(json.dumps(with_checksum(facts), ensure_ascii=False, indent=1), "utf-8")
        lines = [json.dumps(row, ensure_ascii=False) for row in _pairs(dataset, pairs)]
        (target / PAIRS).write_text("".join(line + "\n" for line in lines), "utf-8")
        for file in examples:
            if (target / file.name).exists() or file.name == "README.md":
                raise UserError(f"{file}: the steering weights have a file of this name; give it another one")
            shutil.copyfile(file, target / file.name)
        size = sum(file.stat().st_size for file in target.iterdir())
        card = _CARD.format(
            base=_shown(config.policy.base),
            hub=f"base_model: {config.policy.base}\n" if _is_hub_name(config.policy.base) else "",
            lora=_WITH_LORA if task.base.lora is not None else "",
            with_lora=" with the LoRA" if task.base.lora is not None else "",
            name=out.name,
            size=size / 1e6,
            fingerprint=task.base.fingerprint,
            command=facts["command"],
            seed=config.seed,
            step=step,
            notes=notes,
        )
        (target / "README.md").write_text(card, "utf-8")
        write_digests(target)
    return size


def load_steering(path: Path, base: str = "") -> PersonPolicy:
    """The policy of a directory that `save_steering` wrote.

    Args:
      path: the directory.
      base: the language model, if it is not where the configuration says.

    Raises:
      UserError: the directory is damaged or of another version, or the language model is missing or another one.
    """
    facts = read_json(path / _SETTINGS, sealed=True)
    if facts.get("format") != _FORMAT:
        raise UserError(f"{path}: written by another version of fssa_jax; write it again with launch.convert")
    config: PolicyConfig = from_dict(PolicyConfig, facts["config"])
    check(config)
    settings = config.policy
    try:
        check_digests(path)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); get it again") from error
    how = settings.dtype, settings.remat, settings.attention, facts["date"]
    below = base or settings.base
    model = load_base(str(path), *how, under=below) if is_lora(path) else load_base(below, *how)
    if model.fingerprint != facts["base"]:
        raise UserError(f"{path}: steers another language model than {model.directory}; name the one in its README.md")
    try:
        variables = nest(load_file(path / _WEIGHTS))
        featuriser = load_featuriser(path, facts["featuriser"], [], np.zeros((0, 0)))
    except UserError:
        raise
    except Exception as error:  # damaged files surface as many kinds
        raise UserError(f"{path}: damaged ({error}); get it again") from error
    of_texts = featuriser_of_texts(featuriser)
    if isinstance(of_texts, EncoderFeaturiser):
        # A LoRA is in the variables, and texts were embedded without.
        own = model.variables if model.lora is None else None
        of_texts.share(settings.base, model.directory, settings.dtype, own)
    return PersonPolicy(_task(config, model, featuriser, facts), variables)


def pairs_of(path: Path) -> list[dict[str, Any]]:
    """The pairs of responses to ask a new person about, as rows of prompt, response_a and response_b.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        return [json.loads(line) for line in (path / PAIRS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path / PAIRS}: missing or damaged ({error}); get {path} again, or give --pairs") from error


def _task(config: PolicyConfig, base: Base, featuriser: Any, facts: dict[str, Any]) -> PolicyTask:
    """A task without people and texts."""
    empty = {name: Split([], make_table([], [])) for name in SPLITS}
    features = np.zeros((0, facts["features"]), np.float32)
    report = {"levels": tuple(facts["levels"])} if facts["levels"] else {}
    dataset = Dataset([], features, empty, [], featuriser, report=report)
    return PolicyTask(config, dataset, base, no_texts(), np.zeros(0, np.float32))


def _without_directories(word: str) -> str:
    """A word of a command without the directories of the machine that it ran on."""
    return re.sub(r"(?<![\w.])/(?:[^/=\s]+/)+", "", word)


def _is_hub_name(base: str) -> bool:
    return base.count("/") == 1 and not Path(base).is_absolute() and not is_here(base)


def _shown(base: str) -> str:
    """A base as a card names it: a hub name or the name of a package whole, of a path its last part."""
    return base if _is_hub_name(base) else Path(base).name


def _pairs(dataset: Dataset, number: int) -> list[dict[str, Any]]:
    """Pairs that validation people chose between, about as many prompts as possible; who chose what is left out."""
    split = dataset.splits["val"]
    found: dict[str, list[dict[str, Any]]] = {}
    for user in range(len(split.users)):
        for row in choice_records(split, dataset.texts, user, int(np.asarray(split.table.count)[user, 0])):
            of_prompt = found.setdefault(json.dumps(row["prompt"]), [])
            pair = {name: row[name] for name in ("prompt", "response_a", "response_b") if name in row}
            if len(pair) == 3 and pair not in of_prompt:
                of_prompt.append(pair)
    turns = itertools.zip_longest(*found.values())  # the first pair of every prompt, then the second, and so on
    return [pair for turn in turns for pair in turn if pair is not None][:number]
