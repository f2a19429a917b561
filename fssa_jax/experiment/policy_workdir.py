"""The work directory of a policy: its configuration, people, texts, tokens, base and reference."""

import dataclasses
import json
import logging
import shutil
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import reward as configs
from fssa_jax.config.policy import PolicyConfig, check
from fssa_jax.config.reward import Config
from fssa_jax.data import dataset as datasets
from fssa_jax.data.benchmarks import styles
from fssa_jax.data.dataset import Dataset, Split, load_tokens, log_left_out, texts_of
from fssa_jax.data.features import EncoderFeaturiser
from fssa_jax.data.new_people import with_people
from fssa_jax.data.token_table import TokenTable, joined
from fssa_jax.errors import UserError
from fssa_jax.experiment.warm_start import (
    MET,
    adopted,
    fingerprint_of_encoder,
    gone,
    load_people,
    moved,
    resolved,
    with_whole_paths,
)
from fssa_jax.experiment.workdir import check_context_sizes, check_same, refuse_foreign
from fssa_jax.files import write_text
from fssa_jax.lm.base import (
    Base,
    device_tokens,
    load_base,
    new_base,
    only_with_tokens,
    reference_log_probs,
    stored_reference,
    table_with_tokens,
    tokenise,
)
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.tasks.policy import PolicyData
from fssa_jax.tasks.reward import make_model
from fssa_jax.train import parallel
from fssa_jax.train.roles import Role, steps_of, unfinished

_log = logging.getLogger(__name__)

_MANY_PROMPTS = 40


@dataclasses.dataclass(frozen=True)
class PolicyWorkdir:
    """All that programs after training need; the language model itself stays where the configuration says."""

    path: Path
    config: PolicyConfig
    dataset: Dataset
    tokens: TokenTable
    base: Base
    reference: np.ndarray  # (texts,) log-probabilities of the base

    @classmethod
    def open(cls, path: Path, base: str = "") -> "PolicyWorkdir":
        """Opens what was trained; `base` is where its language model is now, if that has moved.

        Raises:
          UserError: this is no work directory of a policy, or its language model is gone or another.
        """
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json; train first with launch.train --config=… --workdir={path}")
        config = configs.read(path / "config.json", PolicyConfig)
        return cls._with_base(path, config, datasets.load(path / "data"), load_tokens(path / "data"), at=base)

    @classmethod
    def make(cls, config: PolicyConfig, path: Path) -> "PolicyWorkdir":
        """Makes the directory, or checks that it is this configuration's and opens it.

        Raises:
          UserError: bad data, settings, base or encoder, or a directory that holds something else.
        """
        config = adopted(with_whole_paths(config))
        check(config)
        _check_parts(config)
        file = path / "config.json"
        if file.exists() and any(path.glob("**/checkpoints/*/*")):
            before = configs.read(file, PolicyConfig)
            dataset = datasets.load(path / "data")
            now = moved(before, config)
            check_same(path, now, resolved(config, dataset, quiet=True))
            _check_encoder(path, now)
            work = cls._with_base(path, before, dataset, load_tokens(path / "data"), at=now.policy.base)
            return dataclasses.replace(work, config=now)
        refuse_foreign(path)
        # A start that failed before its first checkpoint binds nobody.
        (path / "reference.npz").unlink(missing_ok=True)
        dataset = load_people(config, path)
        log_left_out(dataset)
        if config.is_sft and not config.policy.base:
            new_base(config.policy.new, dataset.texts, path / "start", config.seed)
        base = load_base(_with_start(config, path))
        _check_room(config, base)
        tokens = tokenise(base, config.policy, dataset.texts)
        only_with_tokens(dataset, tokens)
        config = resolved(config, dataset)
        if not config.is_sft:
            check_context_sizes(config.evaluate.k, dataset)
        datasets.save(dataset, path / "data", tokens)
        run = {
            "seed": config.seed,
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "jax": jax.__version__,
            "python": sys.version.split()[0],
            "base": base.fingerprint,
            "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
            "encoder": fingerprint_of_encoder(config),
        }
        write_text(path / "run.json", json.dumps(run, indent=2))
        write_text(file, configs.to_json(config))
        shutil.rmtree(path / "embedding", ignore_errors=True)
        return cls._with_base(path, config, dataset, tokens, base)

    @classmethod
    def _with_base(
        cls,
        path: Path,
        config: PolicyConfig,
        dataset: Dataset,
        tokens: TokenTable | None,
        base: Base | None = None,
        at: str = "",
    ) -> "PolicyWorkdir":
        if tokens is None:
            raise UserError(f"{path}: no data/tokens.npz; train into a new --workdir")
        if base is None:
            settings = _with_start(config, path)
            settings = dataclasses.replace(settings, base=at or settings.base)
            if gone(settings.base):
                raise UserError(
                    f"{path}: its language model is not in {settings.base}; name the directory where it is "
                    "now (--base, or --config.policy.base to train on)"
                )
            base = load_base(settings)
        _check_base(path, base)
        if isinstance(dataset.featuriser, EncoderFeaturiser):
            dataset.featuriser.share(config.policy.base, base.directory, config.policy.dtype, base.variables)
        reference = np.zeros(0) if config.is_sft else stored_reference(base, tokens, path / "reference.npz")
        return cls(path, config, dataset, tokens, base, reference)

    def with_people(self, data: str) -> tuple["PolicyWorkdir", Split]:
        """The people of a file of rows as one split to score, with what knows their texts; policies are of this one.

        Raises:
          UserError: see `data.others.with_people`; or no choice is short enough.
        """
        dataset, split = with_people(self.dataset, self.config.data, data, self.dataset.report.get(MET, ()))
        new = tokenise(self.base, self.config.policy, dataset.texts[len(self.dataset.texts) :])
        tokens = joined(self.tokens, new)
        split.table, lost = table_with_tokens(split.table, tokens)
        if lost:
            _log.warning("%d choices about texts that are too long are left out", lost)
        reference = np.concatenate([self.reference, reference_log_probs(self.base, new)])
        return dataclasses.replace(self, dataset=dataset, tokens=tokens, reference=reference), split

    @property
    def reward(self) -> RewardModel:
        """The reward model whose encoder reads the choices."""
        return make_model(Config(model=self.config.model), self.dataset)

    def conditioner(self, role: Role = "main") -> Conditioner:
        """What steers the base in a role: "population" is DPO on everybody, "oracle" a specialist for each group."""
        adapter = self.config.policy.adapter
        c = self.base.decoder.config
        hyper = Hypernetwork(
            adapter.kind,  # type: ignore[arg-type]
            place_sizes(c, adapter.places),
            c.layers,
            adapter.rank,
            adapter.core,  # type: ignore[arg-type]
            adapter.hidden,  # type: ignore[arg-type]
            adapter.width,
            shared_places=place_sizes(c, adapter.shared_places) if adapter.shared_rank else (),
            shared_rank=adapter.shared_rank,
            shared_scale=(adapter.shared_alpha / adapter.shared_rank if adapter.shared_alpha else 2.0)
            if adapter.shared_rank
            else 0.0,
        )
        if role == "oracle":
            return Conditioner(hyper, "group", groups=len(self.dataset.groups))
        if role == "population" or adapter.latent == "none":
            return Conditioner(hyper, "none")
        return Conditioner(hyper, "context", self.reward, frozen=self.config.encoder.frozen)

    def data(self, split: str) -> PolicyData:
        """What steps and scores read on the device."""
        if self.config.is_sft:
            return dataclasses.replace(self._on_device, rows=jnp.asarray(self._texts(split)))
        choices = jax.tree.map(jnp.asarray, self.dataset.splits[split].table)
        return dataclasses.replace(self._on_device, choices=choices)

    @cached_property
    def _on_device(self) -> PolicyData:
        """What all splits and roles share: one copy on the device."""
        tokens = device_tokens(self.tokens)
        if self.config.is_sft:
            return tokens
        return dataclasses.replace(
            tokens,
            base=self.base.variables,
            reference=jnp.asarray(self.reference),
            features=jnp.asarray(self.dataset.features),
        )

    def _texts(self, split: str) -> np.ndarray:
        """Texts to learn or to validate the base on: of rows those of training people; of `styles` all, which is what
        its base is to know of the world, but for those of `train.unread`. Of every twenty prompts one is for
        validation; of few prompts, such as topics that everybody speaks about, of every twenty texts one."""
        fits, unread = self.tokens.lengths > 0, self.config.train.unread
        if self.config.data.source == "rows" or unread == "topics":
            known = np.zeros(len(fits), bool)
            known[texts_of(self.dataset.splits["train"].table)] = True
            fits &= known
        elif unread == "targets":
            asked = asked_prompts(self.dataset)
            fits &= np.array([prompt not in asked for prompt, _ in self.dataset.texts])
        rows = np.flatnonzero(fits)
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(self.dataset.texts[r][0] for r in rows))}
        place = (
            np.array([number[self.dataset.texts[r][0]] for r in rows])
            if len(number) >= _MANY_PROMPTS
            else np.arange(len(rows))
        )
        held_out = place % 20 == 7 % max(len(rows), 1)
        return rows[held_out] if split == "val" else rows[~held_out]

    @property
    def roles(self) -> tuple[Role, ...]:
        """What is trained, in this order; specialists need groups to be told."""
        train = self.config.train
        if self.config.is_sft or self.config.policy.adapter.latent != "context":
            return ("main",)
        population: tuple[Role, ...] = ("population",) if train.population_steps > 0 else ()
        oracle: tuple[Role, ...] = ("oracle",) if train.oracle_steps > 0 and len(self.dataset.groups) > 1 else ()
        return (*population, "main", *oracle)

    def unfinished(self) -> list[str]:
        """One warning for every policy whose training has not come to its end."""
        return unfinished(self.path, "policy", {role: steps_of(self.config.train, role) for role in self.roles})


def asked_prompts(dataset: Dataset) -> set[str]:
    """The prompts that held-out people of `styles` are asked about; where these are all of a topic, without the last,
    so that a base that does not read them has heard of it."""
    of_topic: dict[str | None, list[str]] = {}
    for prompt in dict.fromkeys(prompt for prompt, _ in dataset.texts):
        of_topic.setdefault(styles.topic_of(prompt), []).append(prompt)
    asked = {dataset.texts[i][0] for name in ("val", "test") for i in texts_of(dataset.splits[name].table, 1)}
    return asked - {prompts[-1] for prompts in of_topic.values() if asked.issuperset(prompts)}


def _check_parts(config: PolicyConfig) -> None:
    """Every device takes its share of a batch in equal parts."""
    name, size = ("texts", config.train.texts) if config.is_sft else ("users", config.train.users)
    if parallel.resolve(config.train.parallel, size, name) == "pmap":
        parts = jax.device_count() * config.train.accumulate
        if size % parts:
            raise UserError(
                f"config.train.{name}: {size} cannot be shared by {jax.device_count()} devices that take "
                f"{config.train.accumulate} parts each; give a multiple of {parts}"
            )


def _check_room(config: PolicyConfig, base: Base) -> None:
    """What is to be written must fit into the positions of the base, before anything is trained."""
    asked, positions = config.evaluate.generate, base.decoder.config.max_length
    if not config.is_sft and asked.people and asked.max_new >= positions:
        raise UserError(
            f"config.evaluate.generate.max_new: {asked.max_new} tokens and a prompt do not fit into the "
            f"{positions} positions of {base.directory}; give less"
        )


def _check_base(path: Path, base: Base) -> None:
    """What was trained to steer one language model means nothing to another."""
    before = configs.read_json(path / "run.json").get("base") if (path / "run.json").is_file() else None
    if before not in (None, base.fingerprint):
        raise UserError(
            f"{path}: its adapters are of another language model than {base.directory}; name the base "
            "that it was trained with"
        )


def _check_encoder(path: Path, config: PolicyConfig) -> None:
    """What starts from one encoder does not go on from another."""
    before = configs.read_json(path / "run.json").get("encoder") if (path / "run.json").is_file() else None
    if before not in (None, fingerprint_of_encoder(config)):
        raise UserError(
            f"{path}: {config.encoder.init_from} is another reward model than it was started with; name "
            "that one in config.encoder.init_from"
        )


def _with_start(config: PolicyConfig, path: Path) -> Any:
    """The language model's settings; a base that is made here starts from what was made for it."""
    settings = config.policy
    return settings if settings.base else dataclasses.replace(settings, base=str(path / "start"))
