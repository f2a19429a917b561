"""Shared by all programs: flags, logging, and one-line messages for errors of the user."""

import dataclasses
import difflib
import logging
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from fssa_jax.config import UltraFeedback
from fssa_jax.config.experiment import KINDS
from fssa_jax.config.fields import all_kinds, fields_of, kinds_of
from fssa_jax.errors import Stopped, UserError, printable
from fssa_jax.files import cache_directory
from fssa_jax.progress import watch

_COMPILED_BYTES = 4 * 2**30  # of compiled programs; the least recently used go first


def parse_numbers(flag: str, values: Sequence[str]) -> list[float]:
    """The numbers of a list flag.

    Raises:
      UserError: one of them is not a number.
    """
    try:
        parsed = [float(value) for value in values]
        if not all(map(math.isfinite, parsed)):
            raise ValueError
        return parsed
    except ValueError as error:
        raise UserError(f"--{flag}: needs numbers such as 0,.25,.5,.75,1; got {','.join(values)}") from error


SAMPLING = ("temperature", "top_p", "max_new")


def check_text(flag: str, text: str) -> None:
    """Raises `UserError` for the text of a flag that is empty or not UTF-8."""
    if not text.strip():
        raise UserError(f"--{flag}: empty; give a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"--{flag}: not UTF-8 at character {error.start}; save it as UTF-8") from error


def define_sampling_flags(default: str) -> None:
    """The flags of `sampling_given`; `default` says what they are otherwise."""
    flags.DEFINE_float("temperature", None, f"sampling temperature; 0 is greedy; default: {default}", lower_bound=0.0)
    flags.DEFINE_float("top_p", None, f"nucleus sampling with this total probability; default: {default}", 0.01, 1.0)
    flags.DEFINE_integer("max_new", None, f"maximum tokens per response; default: {default}", lower_bound=1)


def sampling_given() -> dict[str, Any]:
    """The sampling flags that were given, by name.

    Raises:
      UserError: a temperature that is no finite number.
    """
    f = flags.FLAGS
    _check_finite("temperature", f.temperature)
    return {name: f[name].value for name in SAMPLING if f[name].present}


def define_strength_flag() -> None:
    """The flag --strength of the programs that write for a person."""
    said = "factor on what the choices change: 1 as trained, 0 nothing; default: as in the evaluation"
    flags.DEFINE_float("strength", None, said, lower_bound=0.0)


def writing_given() -> dict[str, Any]:
    """How to write for a person: arguments `sampling` and `strength` of `write_for`.

    Raises:
      UserError: a number that is not finite.
    """
    _check_finite("strength", flags.FLAGS.strength)
    return {"sampling": sampling_given(), "strength": flags.FLAGS.strength}


def _check_finite(flag: str, value: float | None) -> None:
    if not math.isfinite(value or 0.0):
        raise UserError(f"--{flag}: must be a number from 0 up, got {value}")


def define_process_flags() -> None:
    """The flags of `join_processes`, for programs that run on several hosts."""
    flags.DEFINE_string(
        "coordinator", "", "for a run on several hosts: HOST:PORT of the first host, or auto on TPU pods and Slurm"
    )
    flags.DEFINE_integer("processes", 0, "number of processes of a run on several hosts", lower_bound=0)
    flags.DEFINE_integer("process", 0, "index of this process, from 0", lower_bound=0)


def join_processes() -> None:
    """Joins the processes of a run on several hosts if --coordinator is given.

    Raises:
      UserError: the flags contradict each other, or the other processes cannot be reached.
    """
    f = flags.FLAGS
    where, processes, process = f.coordinator, f.processes, f.process
    if not where:
        return
    if where != "auto" and not (re.fullmatch(r"\S+:\d+", where) and process < processes):
        raise UserError("--coordinator=HOST:PORT needs --processes=N and --process=I with I from 0 to N − 1")
    try:
        if where == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(where, processes, process)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--coordinator={where}: cannot join the other processes ({reason})") from error


def define_config_words() -> None:
    """Registers flag parsers for configuration fields of type `Literal`."""
    for kind in all_kinds(*KINDS, UltraFeedback):
        for _, hint in fields_of(kind):
            if typing.get_origin(hint) is typing.Literal:
                words = flags.EnumParser(list(typing.get_args(hint)))
                config_flags.register_flag_parser_for_type(hint, words)


def set_xla_flags() -> None:
    """Adds to XLA_FLAGS what this version of JAX needs, before JAX starts; settings of the user are kept.

    On a GPU, XLA would choose among its own kernels and cuBLAS's for every matrix product by compiling and timing
    dozens of them: a training step of 1.5B parameters then compiles for more than 200 s instead of 10 s (H200, JAX
    0.11.2). It would also merge the products of one input by concatenating their weights anew in every decoding step,
    which costs a tenth of its time.

    The concurrent scheduler of XLA's CPU backend in JAX 0.10 can deadlock if a program makes several LAPACK calls on
    large batches. It also trains more slowly. Other versions may not know the flag, and XLA aborts on unknown flags.
    """
    jaxlib, added = version("jaxlib"), []
    if jaxlib.startswith("0.10."):
        added.append("--xla_cpu_enable_concurrency_optimized_scheduler=false")
    if jaxlib.startswith(("0.10.", "0.11.")) and any(find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        added += ["--xla_gpu_enable_triton_gemm=false", "--xla_gpu_dot_merger_threshold_mb=0"]
    given = os.environ.get("XLA_FLAGS", "")
    mine = " ".join(flag for flag in added if flag.partition("=")[0] not in given)
    if mine:
        os.environ["XLA_FLAGS"] = f"{given} {mine}".strip()


def keep_compiled() -> None:
    """Lets compiled programs outlive the process, in the user's cache; JAX's own settings come first.

    Compiling takes half a minute per shape for a model of 30 layers, and every program has some.
    """
    directory = cache_directory("compiled")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # nothing can be kept there
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_compilation_cache_max_size", _COMPILED_BYTES)


def run(main: Callable[[], None], usage: str) -> None:
    """Parses the flags and calls main().

    Exit status: 0 when done, or stopped by SIGTERM with everything saved; 2 on an error of the user, which is printed
    in one line without a traceback.
    """
    set_xla_flags()
    keep_compiled()
    # --help shows the program's own text.
    sys.modules["__main__"].__doc__ = usage

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except Exception as error:  # flags and configuration files raise many kinds, all of them about the command
            _fail(f"{_reason(_user_error(error) or error)}; see --help")
            raise  # not reached: _fail exits

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            _fail(f"unknown argument {argv[1]!r}; see --help")
        _quiet_logging()
        try:
            with watch():
                main()
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted; no file is half-written, and the same command can be run again", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            os._exit(1)
        except MemoryError:
            _fail("out of memory; give smaller sizes, such as --config.train.users or --config.data.max_rows")
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _fail(f"the device is out of memory ({str(error).splitlines()[0][:200]}); give smaller sizes")
        except OSError as error:  # a disk that is full or gone, not caught closer to its cause
            _fail(
                f"{error.filename or 'a file'}: {error.strerror or error}; free disk space, or give another directory"
            )

    if any(argument in ("--help", "-h", "-help") for argument in sys.argv[1:]):
        print(usage.strip() + "\n\nFlags:")
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
            plain = isinstance(flag.default, str | int | float | list) and flag.default
            default = f" (default: {flag.default})" if plain else ""
            print(f"  --{flag.name}: {flag.help}{default}")
        return
    app.run(guarded, flags_parser=parse)


def _user_error(error: BaseException | None) -> UserError | None:
    """The first UserError in a chain of errors: libraries wrap every ValueError raised in a configuration file."""
    first = None
    while error is not None:
        first = error if isinstance(error, UserError) else first
        error = error.__context__
    return first


def _reason(error: Exception) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if missing := re.search(r"No such file or directory: '([^']+\.py)'", text):
        return f"--config: no such file {missing[1]}; give one such as configs/rows.py:np_btl"
    kinds = {kind.__name__: kind for kind in all_kinds(*KINDS)}
    if "ambiguous type: " in text or " as instance of <class 'fssa_jax.config." in text:
        names = re.findall(r"fssa_jax\.config\.\w+\.(\w+)", text)
        what = f"of {names[0]}" if len(names) == 1 else f"one of {', '.join(names)}"
        chosen = "--config=FILE.py:VARIANT chooses it, flags set its keys"
        return f"{_group_flag(names)}: a group of settings, {what}; {chosen}"
    missing_section = r"Attribute <class '[\w.]+\.(?P<kind>\w+)'>\.(?P<name>\w+) does not exist"
    if (section := re.search(missing_section, text)) and section["kind"] in kinds:
        text = f"Field {section['name']} not found on dataclass <class 'x.{section['kind']}'>"
    if unknown := re.search(r"Field (\w+) not found on dataclass <class '[\w.]+\.(\w+)'>", text):
        names = [field.name for field in dataclasses.fields(kinds[unknown[2]])] if unknown[2] in kinds else []
        near = difflib.get_close_matches(unknown[1], names, 1) or names
        what = f" of {unknown[2]}" if unknown[2] in kinds else ""
        return f"--config: no setting {unknown[1]!r}{what}; did you mean {', '.join(near)}?"
    if re.search(r"Unknown command line flag 'config\.", text) and "config" in flags.FLAGS:
        return f"{text}; --config=FILE.py:VARIANT comes first"
    return text


def _group_flag(kinds: list[str]) -> str:
    """The given flag whose field is a group of settings of these kinds."""
    groups = {
        field.name
        for kind in all_kinds(*KINDS)
        for field, hint in fields_of(kind)
        if [inner.__name__ for inner in kinds_of(hint)] == kinds
    }
    given = (argument.split("=")[0] for argument in sys.argv[1:])
    return next((key for key in given if key.startswith("--config.") and key.split(".")[-1] in groups), "--config")


def _fail(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {UserError(message)}", file=sys.stderr)
    sys.exit(2)


class _OneLine(logging.Formatter):
    """Messages in one line, without control characters that names and texts from files may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\t")


def _quiet_logging() -> None:
    """Logs messages of this package from INFO, of all other packages from ERROR."""
    absl_logging.use_python_logging(quiet=True)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger("fssa_jax").setLevel(logging.INFO)
