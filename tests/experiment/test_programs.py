"""The programs from outside: the whole road on small rows, --help, and one clear line for every mistake."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.programs import assert_one_clear_line, run

TINY = [
    "--config.data.features=tfidf",
    "--config.train.steps=10",
    "--config.train.steps_per_call=5",
    "--config.train.validate_every=5",
    "--config.train.checkpoint_every=5",
    "--config.train.users=8",
    "--config.train.max_context=3",
    "--config.train.targets=3",
    "--config.train.population_steps=5",
    "--config.train.specialist_steps=5",
    "--config.evaluate.k=(0,1,3)",
    "--config.evaluate.bootstrap=20",
    "--config.train.factor_steps=5",
    "--config.evaluate.draws=1",
    "--config.evaluate.shuffles=1",
]


@pytest.fixture(scope="module")
def trained(once):
    """rows → prepared directory → trained and evaluated work directory."""
    records = tiny.rows()

    def arguments(directory: Path) -> list[str]:
        return ["--config=configs/rows.py:np_btl", f"--config.data.path={directory / 'prepared'}", *TINY]

    def make(directory: Path) -> None:
        rows = tiny.write_rows(directory / "rows.jsonl", records)
        small = ["--config.data.components=8", "--config.data.features=tfidf"]
        prepared = run("prepare_data", f"--source={rows}", f"--out={directory / 'prepared'}", *small)
        assert prepared.returncode == 0, prepared.stderr
        (directory / "prepare_data.out").write_text(prepared.stdout)
        (directory / "prepare_data.err").write_text(prepared.stderr)
        done = run("train", *arguments(directory), f"--workdir={directory / 'run'}")
        assert done.returncode == 0, done.stderr
        (directory / "train.err").write_text(done.stderr)
        evaluated = run("evaluate", f"--workdir={directory / 'run'}")
        assert evaluated.returncode == 0, evaluated.stderr
        (directory / "printed").write_text(evaluated.stdout)

    directory = once("road", make)
    return directory, arguments(directory), records, (directory / "printed").read_text()


def test_evaluate_writes_the_whole_report(trained):
    directory, _, _, printed = trained
    report = json.loads((directory / "run" / "report" / "report.json").read_text())
    for name in ("accuracy", "nll", "ece", "control", "scrambled", "population", "specialist"):
        for k in ("0", "1", "3"):
            cell = report[name][k]
            assert cell["low"] <= cell["mean"] + 1e-6, name
            assert cell["mean"] <= cell["high"] + 1e-6, name
    assert 0 <= report["accuracy"]["3"]["mean"] <= 1
    assert report["population"]["0"] == report["population"]["3"]
    # What a policy's report says of its latent, a reward model's says too.
    latent = report["latent"]
    for name in ("norm", "norm_scrambled", "norm_contradicted"):
        assert set(latent[name]) == {"0", "1", "3"}, name
        assert latent[name]["0"] <= latent[name]["3"], name
    assert latent["active_share"] == latent["active_units"] / latent["units"]
    assert "counted" not in latent  # next to a population model, to be undecided is news
    page = (directory / "run" / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    # Tables scroll inside the page on a narrow screen.
    assert page.count("<table") == page.count("<div class=t><table") > 0
    assert ".t{overflow-x:auto}" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for words in ("choices of many people mixed", "choices that contradict each other"):
        assert words in page, words
    for picture in ("accuracy.png", "curves.png", "latents.png"):
        assert (directory / "run" / "report" / picture).read_bytes().startswith(b"\x89PNG")
    assert "k = 3" in printed
    assert "report.html" in printed


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ("prepare_data.out", ["people: ", "k that can be evaluated: ", "warning: only 20 people to train on"]),
        ("prepare_data.err", ["features: TF-IDF of "]),
        ("train.err", ["people: 20 train", "only 20 people to train on", "training on "]),
    ],
)
def test_programs_say_what_they_have_before_the_long_work(trained, said, lines):
    directory, _, _, _ = trained
    text = (directory / said).read_text().splitlines()
    for line in lines:
        assert any(found.startswith(line) for found in text), line


@pytest.mark.parametrize("k", ["²", "-1", "1.5", "10000", "0,,1"])
def test_context_sizes_that_are_none_are_named(k):
    assert_one_clear_line(run("evaluate", "--workdir=anywhere", f"--k={k}"), "--k: needs context sizes such as 0,2,8")


@pytest.mark.parametrize("steps", ["5", "5:", ":9", "9:5", "5:5", "-1:5", "a:b", "1:2:3", "²:9"])
def test_steps_to_trace_that_are_none_are_named(steps):
    mistaken = run("train", "--config=configs/styles.py", "--workdir=anywhere", f"--profile={steps}")
    assert_one_clear_line(mistaken, "--profile: needs START:STOP")


def test_a_profile_of_a_training_is_in_its_work_directory(trained, tmp_path):
    _, arguments, _, _ = trained
    many = run("train", *arguments, f"--workdir={tmp_path / 'run'}", "--profile=0:99999")
    assert_one_clear_line(many, "--profile: the training has", "99999")
    assert not (tmp_path / "run").exists()
    done = run("train", *arguments, f"--workdir={tmp_path / 'run'}", "--profile=0:2", "--debug_nans")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "profile").glob("**/*.xplane.pb"))
    assert "tensorboard --logdir=" in done.stderr


def test_budgets_that_exclude_each_other_are_named():
    both = run("evaluate", "--workdir=anywhere", "--quick", "--full")
    assert_one_clear_line(both, "--quick: is another budget than --full; give one of them")
    folds = run("evaluate", "--workdir=anywhere", "--quick", "--folds=3")
    assert_one_clear_line(folds, "--folds: scores all people of the work directory")


def test_evaluate_on_other_peoples_rows(trained, tmp_path):
    directory, _, _, _ = trained
    others = [{**row, "user_id": f"other {row['user_id']}"} for row in tiny.rows(users=6, seed=5)]
    others += tiny.rows(users=1)  # who was trained on
    path = tiny.write_rows(tmp_path / "others.jsonl", others)
    done = run("evaluate", f"--workdir={directory / 'run'}", f"--data={path}", "--k=0,2")
    assert done.returncode == 0, done.stderr
    report = json.loads((directory / "run" / "report-others" / "report.json").read_text())
    assert report["users"]["scored"] == 6
    assert any("only 6 people" in w for w in report["warnings"])
    assert "were trained on and are left out: u0" in done.stderr
    assert report["data"] == str(path)
    assert "k = 2" in done.stdout
    mistaken = run("evaluate", f"--workdir={directory / 'run'}", "--base=anywhere")
    assert_one_clear_line(mistaken, "--base", "is a reward model")


def test_a_prepared_directory_keeps_its_settings(trained):
    directory, arguments, _, _ = trained
    done = run("train", *arguments, "--config.data.max_rows=3", f"--workdir={directory / 'other'}")
    assert_one_clear_line(done, "prepared", "config.data.max_rows=64, not 3")
    assert not (directory / "other").exists()


def test_what_is_in_a_directory_is_not_overwritten(trained, tmp_path):
    _, arguments, _, _ = trained
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("mine")
    assert_one_clear_line(run("train", *arguments, f"--workdir={tmp_path}"), str(tmp_path), "data")
    assert (tmp_path / "data" / "rows.jsonl").read_text() == "mine"


@pytest.mark.experiments
@pytest.mark.experiments
def test_the_defaults_fit_a_small_file(tmp_path):
    """The command of the README on 14 rows a person: contexts and targets of training are cut to what there is."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows())
    few = [a for a in TINY if "max_context" not in a and "targets" not in a and "factor" not in a]
    command = ["--config=configs/rows.py:np_btl", f"--config.data.path={rows}", f"--workdir={tmp_path / 'run'}"]
    wanted = run("train", *command, "--config.evaluate.k=(0,1,3,5,9,)")
    assert_one_clear_line(wanted, "config.evaluate.k: 9", '"--config.evaluate.k=(0,1,3,5,7,)"')
    done = run("train", *command, *few, "--config.train.specialist_steps=0", "--config.model.learn_texts=no")
    assert done.returncode == 0, done.stderr
    assert "config.train.max_context=7" in done.stderr


def test_steer_ranks_for_the_maker_of_the_choices(trained, tmp_path):
    directory, _, records, _ = trained
    choices = [{k: v for k, v in r.items() if k not in ("user_id", "group")} for r in records[:4]]
    tiny.write_rows(tmp_path / "choices.jsonl", choices)
    candidates = [
        {"prompt": "question 0", "response": text} for text in ("word1 word2", "word3 " * 9, "new words here")
    ]
    tiny.write_rows(tmp_path / "candidates.jsonl", candidates)
    arguments = [f"--workdir={directory / 'run'}", f"--choices={tmp_path / 'choices.jsonl'}"]
    arguments.append(f"--responses={tmp_path / 'candidates.jsonl'}")
    done = run("steer", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    ranking = json.loads(done.stdout)
    assert sorted(ranking["responses"]) == sorted(c["response"] for c in candidates)
    assert sum(ranking["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert ranking["probabilities"] == sorted(ranking["probabilities"], reverse=True)
    table = run("steer", *arguments, "--trace")
    assert "After 4 choices" in table.stdout


@pytest.mark.parametrize("program", ["train", "evaluate", "steer", "prepare_data", "convert"])
def test_help_explains(program):
    done = run(program, "--help")
    assert done.returncode == 0
    assert f"python -m launch.{program}" in done.stdout
    assert "--" in done.stdout


def bad_row(name, value):
    def make(records):
        records[3] = {**records[3], name: value}

    return make


def drop_column(records):
    del records[3]["choice"]


BAD_ROWS = {
    "missing column": (drop_column, ["rows.jsonl:4", "'choice'"]),
    "choice": (bad_row("choice", 2), ["rows.jsonl:4", "'choice'", "0 (a) or 1 (b)"]),
    "identical": (
        lambda r: r[3].update(response_b=r[3]["response_a"]),
        ["rows.jsonl:4", "'response_a' and 'response_b' are"],
    ),
    "not a text": (bad_row("response_a", ["a"]), ["rows.jsonl:4", "'response_a' must be a text"]),
    "both pools": (
        lambda r: [
            x.update(pool="target" if i == 0 else "context", prompt="p", response_a="the same") for i, x in enumerate(r)
        ],
        ["in both pools of user 'u0'"],
    ),
    "two people": (lambda r: r.__delitem__(slice(28, None)), ["rows of 2 people"]),
    "empty text": (bad_row("response_a", "  "), ["rows.jsonl:4", "'response_a' is empty"]),
    "nobody with enough rows": (
        lambda r: r.__setitem__(slice(None), [x for i, x in enumerate(r) if i % 14 == 0]),
        ["rows.jsonl: no train user with 1 context and 1 target rows", "give more rows per user"],
    ),
    "two splits": (
        lambda r: [r[i].update(split_user=["train", "test"][i % 2]) for i in range(4)],
        ["user 'u0'", "splits"],
    ),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_stop_every_program_and_write_nothing(tmp_path, spoil, words):
    records = tiny.rows(users=6)
    spoil(records)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", records)
    assert_one_clear_line(run("prepare_data", f"--source={rows}", f"--out={tmp_path / 'out'}"), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_duplicate_rows_are_kept_once_and_counted(tmp_path):
    records = tiny.rows(users=6)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [*records, records[0], records[20]])
    done = run("prepare_data", f"--source={rows}", f"--out={tmp_path / 'out'}", "--config.data.components=4")
    assert done.returncode == 0, done.stderr
    assert "2 duplicate rows kept once" in done.stderr
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["report"]["duplicates"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"user_id": "a"}\n', [":1", "'response_a'"]),
        (b"{nonsense\n", [":1", "not JSON"]),
        (b"\xff\n", [":1", "UTF-8"]),
    ],
    ids=["columns", "json", "encoding"],
)
def test_files_that_are_no_rows(tmp_path, content, words):
    (tmp_path / "rows.jsonl").write_bytes(content)
    done = run("prepare_data", f"--source={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'out'}")
    assert_one_clear_line(done, "rows.jsonl", *words)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_vectors_that_do_not_fit_are_named(tmp_path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=6))
    np.save(tmp_path / "rows.npy", np.zeros((3, 4), np.float32))
    done = run("prepare_data", f"--source={rows}", f"--out={tmp_path / 'out'}")
    assert_one_clear_line(done, "rows.npy", "3 rows")
    number = len({(r["prompt"], r[n]) for r in tiny.rows(users=6) for n in ("response_a", "response_b")})
    vectors = np.zeros((number, 4), np.float32)
    vectors[5, 1] = np.inf
    np.save(tmp_path / "rows.npy", vectors)
    done = run("prepare_data", f"--source={rows}", f"--out={tmp_path / 'out'}")
    assert_one_clear_line(done, "rows.npy", "row 5 is not finite")


TRAIN_MISTAKES = {
    "unknown key": (["--config.optim.learning_rat=1"], ["'learning_rat'", "did you mean learning_rate?"]),
    "unknown section": (["--config.modl.width=1"], ["'modl'", "did you mean model?"]),
    "setting of another kind": (
        ["--config.model.encoder.heads=4"],
        ["'heads' of BayesEncoder", "did you mean observations, prior, gaussian, lapses?"],
    ),
    "ill-typed": (["--config.seed=abc"], ["config.seed", "abc"]),
    "unknown word": (["--config.model.head=cubic"], ["config.model.head=cubic", "<concat|bilinear>"]),
    "k too large": (["--config.evaluate.k=(0,400)"], ["config.evaluate.k", "400"]),
    "no such file": (["--config.data.path=absent.jsonl"], ["absent.jsonl", "no such file"]),
    "stray argument": (["steps=3"], ["steps=3"]),
    "other workdir": (["--config.seed=7"], ["config.seed=0, not 7"]),
}


@pytest.mark.parametrize(("extra", "words"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES)
def test_mistakes_in_the_train_command(trained, tmp_path, extra, words):
    directory, arguments, _, _ = trained
    workdir = directory / "run" if words[0].endswith("not 7") else tmp_path / "run"
    assert_one_clear_line(run("train", *arguments, *extra, f"--workdir={workdir}"), *words)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written_is_named(trained, tmp_path):
    _, arguments, _, _ = trained
    (tmp_path / "file").write_text("mine")
    done = run("train", *arguments, f"--workdir={tmp_path / 'file' / 'run'}")
    assert_one_clear_line(done, str(tmp_path / "file"), "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_train_falls_back_from_a_damaged_checkpoint_and_says_so(trained, tmp_path):
    directory, arguments, _, _ = trained
    shutil.copytree(directory / "run", tmp_path / "run")
    latest = tmp_path / "run" / "checkpoints" / "latest"
    for file in (latest / "10").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    done = run("train", *arguments, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "checkpoint 10 is damaged" in done.stderr
    assert "trying the one before" in done.stderr
    assert "Traceback" not in done.stderr
    for file in (latest / "10").rglob("*"):  # trained again from step 5, and saved anew
        assert not file.is_file() or file.read_bytes() != b"damaged"


def test_a_damaged_run_file_is_named(trained, tmp_path):
    directory, _, _, _ = trained
    shutil.copytree(directory / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{nonsense")
    assert_one_clear_line(run("evaluate", f"--workdir={tmp_path / 'run'}"), "run.json", "damaged")


def test_unknown_configs_and_workdirs(tmp_path):
    assert_one_clear_line(run("train", "--config=absent.py", f"--workdir={tmp_path / 'x'}"), "absent.py")
    wrong = "error: configs/rows.py: unknown variant 'nope'; give "  # its own words, not those of what reads flags
    assert_one_clear_line(run("train", "--config=configs/rows.py:nope", f"--workdir={tmp_path / 'x'}"), wrong)
    assert_one_clear_line(run("evaluate", f"--workdir={tmp_path}"), "config.json")
    assert_one_clear_line(run("train", "--config=configs/rows.py"), "--workdir")


def test_mistakes_in_the_steer_command(trained, tmp_path):
    directory, _, records, _ = trained
    responses = tiny.write_rows(tmp_path / "r.jsonl", [{"prompt": "q", "response": "x"}])
    two = tiny.write_rows(tmp_path / "two.jsonl", [records[0], records[-1]])
    base = [f"--workdir={directory / 'run'}", f"--responses={responses}"]
    assert_one_clear_line(run("steer", *base, f"--choices={two}"), "two.jsonl", "2 people")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{nonsense\n")
    assert_one_clear_line(run("steer", *base, f"--choices={broken}"), "broken.jsonl:1", "not JSON")
