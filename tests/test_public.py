"""The public names: documented, with examples that run, hiding no module, and clear about shapes."""

import ast
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fssa_jax
from fssa_jax import ops
from fssa_jax.types import ChoiceTable, Comparisons, DiagGaussian, Episode

ROOT = Path(__file__).parent.parent
# Their examples need what was trained; they run in tests/people/test_examples.py.
NEED_A_WORKDIR = {"PersonModel", "PersonPolicy", "load", "read_choices"}
# What is in a work directory or generates has its examples in the README and in docs.
WITHOUT_EXAMPLE = {"generate", "read_choices"}


def public() -> dict[str, object]:
    """Every public name that may have a docstring of its own, by where it is imported from."""
    found = {f"{room.__name__}.{name}": getattr(room, name) for room in (fssa_jax, ops) for name in room.__all__}
    for name in shared_with_their_module():
        found[f"fssa_jax.ops.{name}.{name}"] = getattr(importlib.import_module(f"fssa_jax.ops.{name}"), name)
    return {name: value for name, value in found.items() if getattr(value, "__module__", "").startswith("fssa_jax")}


def shared_with_their_module() -> list[str]:
    modules = [importlib.import_module(f"fssa_jax.ops.{m.name}") for m in pkgutil.iter_modules(ops.__path__)]
    return [n for m in modules if callable(getattr(m, n := m.__name__.rpartition(".")[2], None))]


@pytest.mark.parametrize("name", sorted(public()))
def test_every_public_name_is_documented_with_an_example_that_runs(name):
    value, last = public()[name], name.rpartition(".")[2]
    value = getattr(value, "__wrapped__", value)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{last}("), "a docstring that dataclasses made"
    assert ">>> " in value.__doc__ or last in WITHOUT_EXAMPLE
    if last in NEED_A_WORKDIR:
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for test in doctest.DocTestFinder(exclude_empty=True, recurse=False).find(value, last, module=False, globs={}):
            assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def test_the_names_for_type_checkers_are_those_of_the_table():
    typed = next(
        node for node in ast.parse((ROOT / "fssa_jax/__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    imported = {(node.module, alias.name) for node in typed.body for alias in node.names}  # type: ignore[attr-defined]
    assert imported == {(f"fssa_jax.{m}", name) for m, names in fssa_jax._NAMES.items() for name in names}
    assert fssa_jax.__all__ == sorted(name for _, name in imported)
    assert {*fssa_jax.__all__} <= {*dir(fssa_jax)}
    with pytest.raises(AttributeError, match="has no attribute 'oracle'"):
        fssa_jax.oracle  # noqa: B018


def test_no_name_hides_a_module():
    for room in (fssa_jax, ops):
        for name in room.__all__:
            getattr(room, name)  # a name that is found late must not come to hide anything either
        modules = {module.name for module in pkgutil.iter_modules(room.__path__)}
        assert modules & {*room.__all__} == set()
    for module in pkgutil.iter_modules(ops.__path__):
        assert importlib.import_module(f"fssa_jax.ops.{module.name}") is getattr(ops, module.name)
    import fssa_jax.ops.attention as module

    assert module.attention is fssa_jax.attention


def test_the_room_exports_all_that_is_public_in_it():
    missing = set()
    for info in pkgutil.iter_modules(ops.__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"fssa_jax.ops.{info.name}")
            own = {
                n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"
            }
            missing |= own - {*ops.__all__, info.name}
    assert missing == set()


def test_functions_of_arrays_need_jax_alone():
    """In a process where nothing else of what models, data and training need can be imported."""
    code = """
import sys
absent = "flax orbax optax chex transformers tokenizers datasets sklearn matplotlib tensorboardX huggingface_hub"
sys.modules.update(dict.fromkeys(absent.split()))
import fssa_jax
assert "jax" not in sys.modules
import fssa_jax.ops
from fssa_jax import UserError, apply_adapter, attention, dpo_loss
print(f"{fssa_jax.ops.dpo_loss(-10.0, -12.0, -11.0, -11.0, beta=0.5):.4f}")
try:
    fssa_jax.SetEncoder
except ImportError as error:
    print("flax" in str(error))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.stdout.splitlines() == ["0.3133", "True"], child.stderr


def ones(*shape):
    return jnp.ones(shape)


def true(*shape):
    return jnp.ones(shape, bool)


def ids(*shape):
    return jnp.zeros(shape, int)


def film(*shape):
    return ops.Film(ones(*shape), ones(*shape))


def table(users, rows, count=(2,)):
    return ChoiceTable(ids(users, 2, rows), ids(users, 2, rows), ids(users, *count), ids(users))


def pairs(*shape):
    return Comparisons(ids(*shape), ids(*shape), true(*shape))


def lists(users, n, listed):
    return Comparisons(ids(users, n), ids(users, n), true(users, n), ids(users, n, 5), listed)


def normal(*shape):
    return DiagGaussian(ones(*shape), ones(*shape))


# Of each function a call with a wrong shape; and what is said: what was wanted, and what was got.
WRONG = {
    "apply_adapter": (
        lambda: ops.apply_adapter(None, ones(2, 3, 4), ones(3, 3, 4)),
        "y",
        "(2, 3, outputs)",
        "(3, 3, 4)",
    ),
    "apply_film": (lambda: ops.apply_film(film(2, 5), ones(2, 3, 4)), "scale", "(rows, 4)", "(2, 5)"),
    "apply_low_rank": (
        lambda: ops.apply_low_rank(ops.LowRank(ones(5, 2), ones(2, 6)), ones(2, 3, 4), ones(2, 3, 6)),
        "down",
        "(4, r)",
        "(5, 2)",
    ),
    "attention.attention": (
        lambda: fssa_jax.attention(ones(2, 3, 4, 8), ones(2, 3, 2, 8), ones(2, 3, 2, 6)),
        "value",
        "(2, 3, 2, 8)",
        "(2, 3, 2, 6)",
    ),
    "antithetic_noise": (lambda: ops.antithetic_noise(jax.random.split(jax.random.key(0)), 4, 3), "key", "()", "(2,)"),
    "bayes_log_posterior": (lambda: ops.bayes_log_posterior(ones(5, 3), true(5), ones(4)), "log_prior", "(3,)", "(4,)"),
    "bayes_log_predictive": (
        lambda: ops.bayes_log_predictive(ones(5, 3), true(5), ones(7, 4), ones(3)),
        "target_reward",
        "(t, 3)",
        "(7, 4)",
    ),
    "best_plan": (lambda: ops.best_plan([[3]], 2), "lengths", "(rows,)", "(1, 1)"),  # type: ignore[list-item]
    "bootstrap_weights": (
        lambda: ops.bootstrap_weights(jax.random.split(jax.random.key(0)), 4, 3),
        "key",
        "()",
        "(2,)",
    ),
    "btl_log_likelihood": (lambda: ops.btl_log_likelihood(ones(2, 1), ones(2)), "rejected", "(2, 1)", "(2,)"),
    "calibration_counts": (lambda: ops.calibration_counts(ones(2, 3), true(2, 4)), "mask", "(2, 3)", "(2, 4)"),
    "combine_adapters": (
        lambda: ops.combine_adapters({"query": film(2, 3)}, ones(1, 3)),
        "query.scale",
        "(layers, rows, d)",
        "(2, 3)",
    ),
    "contested_weights": (
        lambda: ops.contested_weights(ids(2, 3), true(2, 3), true(3, 2), 1),
        "mask",
        "(2, 3)",
        "(3, 2)",
    ),
    "choice_log_likelihood": (lambda: ops.choice_log_likelihood(ones(2, 3), true(2, 4)), "listed", "(2, 3)", "(2, 4)"),
    "choice_weights": (
        lambda: ops.choice_weights(Comparisons(ids(2, 3), ids(2, 3), true(2, 3), weight=ones(2, 4))),
        "weight",
        "(2, 3)",
        "(2, 4)",
    ),
    "join_choices": (lambda: ops.join_choices(pairs(2, 3), pairs(4, 3)), "mask_b", "(2,)", "(4,)"),
    "lapse_log_likelihood": (lambda: ops.lapse_log_likelihood(ones(2), 0.1, ids(3)), "number", "(2,)", "(3,)"),
    "list_dpo_loss": (lambda: ops.list_dpo_loss(ones(2, 3), true(2, 4)), "listed", "(2, 3)", "(2, 4)"),
    "list_response_weights": (
        lambda: ops.list_response_weights(ones(2, 3, 4), true(2, 3), 1.0),
        "listed",
        "(2, 3, 4)",
        "(2, 3)",
    ),
    "offered": (lambda: ops.offered(lists(2, 3, true(2, 4, 5))), "listed", "(2, 3, a)", "(2, 4, 5)"),
    "per_choice": (lambda: ops.per_choice(ones(2, 5), pairs(2, 3)), "values", "(*lead, 6)", "(2, 5)"),
    "real_responses": (lambda: ops.real_responses(lists(2, 3, true(3, 5))), "listed", "(2, 3, a)", "(3, 5)"),
    "rating_log_likelihood": (lambda: ops.rating_log_likelihood(ones(2), ones(2, 4), ids(3)), "rating", "(2,)", "(3,)"),
    "thumb_log_likelihood": (lambda: ops.thumb_log_likelihood(ones(2), 0.0, true(3)), "up", "(2,)", "(3,)"),
    "responses_by_choice": (
        lambda: ops.responses_by_choice(Comparisons(ids(2, 3), ids(2, 4), true(2, 3))),
        "rejected",
        "(2, 3)",
        "(2, 4)",
    ),
    "responses_of": (
        lambda: ops.responses_of(Comparisons(ids(2, 3), ids(2, 4), true(2, 3))),
        "rejected",
        "(2, 3)",
        "(2, 4)",
    ),
    "dpl_log_likelihood": (lambda: ops.dpl_log_likelihood(ones(3), 1.0, ones(2), 1.0), "rejected_mean", "(3,)", "(2,)"),
    "dpo_loss": (lambda: ops.dpo_loss(ones(2, 1), ones(2), ones(2), ones(2), beta=1.0), "rejected", "(2, 1)", "(2,)"),
    "draw_episode": (
        lambda: ops.draw_episode(jax.random.key(0), table(4, 6, (3,)), max_context=1, max_targets=1),
        "count",
        "(4, 2)",
        "(4, 3)",
    ),
    "ece_from_counts": (lambda: ops.ece_from_counts(ones(15, 2)), "counts", "(*batch, bins, 3)", "(15, 2)"),
    "evaluation_episode": (
        lambda: ops.evaluation_episode(jax.random.key(0), table(4, 6), ids(2), max_context=1),
        "user",
        "()",
        "(2,)",
    ),
    "expected_calibration_error": (lambda: ops.expected_calibration_error(ones(3)), "p", "(users, targets)", "(3,)"),
    "factorise.factorise": (
        lambda: importlib.import_module("fssa_jax.ops.factorise").factorise(
            jax.random.key(0), ids(4), ids(3), ids(4), users=1, texts=1, width=1
        ),
        "text",
        "(4,)",
        "(3,)",
    ),
    "few_plans": (lambda: ops.few_plans(ids(3), 2, 8), "batches", "(batches, rows)", "(3,)"),  # type: ignore[arg-type]
    "fits": (lambda: ops.fits(((2, 8),), ids(2, 1)), "lengths", "(rows,)", "(2, 1)"),  # type: ignore[arg-type]
    "gaussian_kl": (lambda: ops.gaussian_kl(normal(2, 3), normal(3)), "p.mean", "(2, 3)", "(3,)"),
    "gaussian_log_prob": (lambda: ops.gaussian_log_prob(normal(3), ones(2, 3)), "value", "(3,)", "(2, 3)"),
    "gaussian_sample": (lambda: ops.gaussian_sample(normal(2, 3), ones(3)), "noise", "(2, 3)", "(3,)"),
    "imitation_loss": (
        lambda: ops.imitation_loss(ones(2, 3), ones(2, 3), (ones(2, 3), ones(3)), 5),
        "weights_rejected",
        "(2, 3)",
        "(3,)",
    ),
    "implicit_rewards": (lambda: ops.implicit_rewards(ones(2), ones(2), ones(2)), "beta", "()", "(2,)"),
    "interval": (lambda: ops.interval(ones(2, 3)), "samples", "(n,)", "(2, 3)"),
    "latent_roles": (lambda: ops.latent_roles("elbo", normal(3), None, normal(4)), "q_union.mean", "(3,)", "(4,)"),
    "length_batches": (
        lambda: ops.length_batches(ids(2, 2), 8),  # type: ignore[arg-type]
        "lengths",
        "(rows,)",
        "(2, 2)",
    ),
    "lora_factors": (
        lambda: ops.lora_factors(ops.LowRank(ones(4, 8, 2), ones(4, 3, 8))),
        "up",
        "(4, 2, outputs)",
        "(4, 3, 8)",
    ),
    "masked_mean": (lambda: ops.masked_mean(ones(2, 3), true(3)), "mask", "(2, 3)", "(3,)"),
    "nested_order": (lambda: ops.nested_order(jax.random.key(0), ids(2), 3), "count", "()", "(2,)"),
    "neural_process_loss": (lambda: ops.neural_process_loss(ones(2, 3), true(2)), "mask", "(3,)", "(2,)"),
    "next_tokens": (
        lambda: ops.next_tokens(ones(2, 5), jax.random.split(jax.random.key(0), 3), None, ops.Sampling()),
        "keys",
        "(2,)",
        "(3,)",
    ),
    "observed_responses": (lambda: ops.observed_responses(table(4, 6, ())), "count", "(4, 2)", "(4,)"),
    "padding_share": (lambda: ops.padding_share(ids(2, 2)), "lengths", "(rows,)", "(2, 2)"),  # type: ignore[arg-type]
    "penalise": (lambda: ops.penalise(ones(2, 5), true(5), 2.0), "seen", "(2, 5)", "(5,)"),
    "response_log_probs": (
        lambda: ops.response_log_probs(ones(2, 5, 4), ones(4, 7), ids(2, 5), ids(2), ids(3)),
        "ends",
        "(2,)",
        "(3,)",
    ),
    "response_weights": (
        lambda: ops.response_weights(ones(2, 3), ones(2, 3), true(3), 1.0),
        "chosen",
        "(3,)",
        "(2, 3)",
    ),
    "restrict": (lambda: ops.restrict(ones(5), 2, 1.0), "logits", "(batch, vocabulary)", "(5,)"),
    "sft_loss": (lambda: ops.sft_loss(ones(2, 3), ones(2, 3), true(2)), "log_probs", "(2,)", "(2, 3)"),
    "soft_label_loss": (
        lambda: ops.soft_label_loss(ones(2, 1), ones(2, 1), ones(2), 0.5),
        "probability",
        "(2, 1)",
        "(2,)",
    ),
    "steering_score": (lambda: ops.steering_score(ones(2), ones(3)), "accuracy_b", "(2,)", "(3,)"),
    "take_adapter_rows": (lambda: ops.take_adapter_rows({"query": film(4, 2, 3)}, ids(1, 1)), "rows", "(n,)", "(1, 1)"),
    "take_choices": (lambda: ops.take_choices(table(4, 6), 0, 0, ids(2, 2), 1), "order", "(n,)", "(2, 2)"),
    "token_log_probs": (
        lambda: ops.token_log_probs(ones(2, 3, 4), ones(5, 7), ids(2, 3), true(2, 3)),
        "kernel",
        "(4, vocabulary)",
        "(5, 7)",
    ),
    "truncate_context": (
        lambda: ops.truncate_context(Episode(c := Comparisons(ids(3), ids(3), true(3)), c, 0, 0), ids(2)),
        "k",
        "()",
        "(2,)",
    ),
    "with_strength": (
        lambda: ops.with_strength({"query": film(2, 3)}, 2.0),
        "query.scale",
        "(layers, rows, d)",
        "(2, 3)",
    ),
}
# Any shape will do, or no array is taken; `check_adapters` is itself a check, of adapters.
ANY_SHAPE = {"preference_accuracy", "standard_normal_like"}
NO_ARRAYS = {
    "attention_is_xla",
    "adapter_layers",
    "adapter_rows",
    "batch_rows",
    "bucket",
    "cheapest",
    "check_adapters",
    "filled_rows",
    "padded_tokens",
}


def complaints() -> dict[str, str]:
    """What the wrong calls are answered with."""
    said = {}
    for name, (call, *_) in WRONG.items():
        try:
            said[name] = f"nothing: {call()}"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def test_wrong_shapes_are_answered_with_what_was_wanted_and_what_was_got():
    """In a process of its own, as users meet them: here the annotations are checked first, and complain themselves."""
    code = "import json; from tests.test_public import complaints; print(json.dumps(complaints()))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    said = json.loads(child.stdout)
    for name, (_, argument, wanted, got) in WRONG.items():
        assert said[name].startswith(f"ValueError: {argument}: wanted "), f"{name}: {said[name]}"
        assert wanted in said[name].partition("got")[0], f"{name}: {said[name]}"
        assert said[name].endswith(f"got {got}"), f"{name}: {said[name]}"


def test_every_function_of_the_room_has_a_wrong_call():
    functions = {name for name in ops.__all__ if type(getattr(ops, name)).__name__ == "function"}
    functions |= {f"{name}.{name}" for name in shared_with_their_module()}
    assert {*WRONG} | ANY_SHAPE | NO_ARRAYS == functions
