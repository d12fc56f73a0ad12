"""The command line as a user meets it: options anywhere, typos named, no traceback, JSON on stdout."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from launcher.artifacts.store import open_store
from launcher.cli.main import main
from launcher.money import account as accounts
from launcher.money.account import HOUR_MS, MICROS, About, Entry
from launcher.money.ledger import open_ledger

ROOT = Path(__file__).parents[2]
SCRIPT = """# /// script
# [tool.runspec]
# name = "{name}"
# [tool.runspec.run]
# launch = "{launch}"
# [tool.runspec.resources]
# gpus_per_node = 0
# {more}
# ///
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


def add_stage(root: Path, name: str, more: str = "", launch: str = "torchrun") -> Path:
    folder = root / "recipes" / name
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "default.yaml").write_text(
        "train:\n  steps: 10\n  lr: 1e-4\nsave: ${node:checkpoints}\n"
    )
    (folder / "config" / "short.yaml").write_text("defaults: default\ntrain:\n  steps: 2\n")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(name=name, launch=launch, more=more.replace("\n", "\n# ")))
    return script


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stages of one family, one made from the other, and the shipped profiles."""
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nemo-sky.yaml").write_text("")
    (tmp_path / "clusters").symlink_to(ROOT / "clusters")
    add_stage(
        tmp_path, "demo/prep", '[tool.nemo_sky.output]\nname = "demo-data"\ntype = "pretrain-data"', "direct"
    )
    add_stage(tmp_path, "demo/train", '[tool.nemo_sky.inputs]\ndata = "art://demo-data"')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(project: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Result(int(stopped.value.code or 0), out, err)

    return call


def test_options_stand_anywhere(run: Run) -> None:
    wanted = run("render", "demo", "train", "--cloud", "local", "train.steps=3", "--nodes", "2")
    assert wanted.code == 0
    assert "num_nodes: 2" in wanted.out
    for words in (
        ("render", "--cloud=local", "--nodes=2", "demo/train", "train.steps=3"),
        ("render", "--nodes", "2", "demo", "--cloud", "local", "train", "train.steps=3"),
    ):
        assert run(*words) == wanted


def test_works_from_inside_and_from_outside(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = run("render", "demo", "train")
    monkeypatch.chdir(project / "recipes" / "demo")
    assert run("render", "demo", "train") == wanted
    monkeypatch.chdir("/")
    assert run("render", "demo", "train", "--project", str(project)) == wanted
    assert run("--project", str(project), "render", "demo", "train") == wanted
    lost = run("render", "demo", "train")
    assert (lost.code, lost.out) == (2, "")
    assert "--project DIR" in lost.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["lanch"], 2, "Did you mean 'launch'"),
        (["launch", "demo", "train", "--clowd", "aws"], 2, "--cloud"),
        (["launch", "demo", "train"], 2, "--cloud local"),
        (["launch", "demo", "trian", "--cloud", "local"], 2, "did you mean 'demo/train'"),
        (["launch", "dmo", "all", "--cloud", "local"], 2, "did you mean 'demo'"),
        (["launch", "demo", "--cloud", "local"], 2, "name a stage as FAMILY STAGE"),
        (["launch", "demo", "train", "--cloud", "locl"], 2, "did you mean 'local'"),
        (["launch", "demo", "train", "--cloud", "local", "--cluster", "aws"], 2, "both say where"),
        (["launch", "demo", "train", "--cloud", "local", "-c", "shrt"], 2, "short"),
        (["launch", "demo", "train", "--cloud", "local", "train.step=3"], 2, "did you mean 'train.steps'"),
        (["launch", "demo", "train", "--cloud", "local", "a=1", "train"], 2, "stands after the overrides"),
        (["launch", "demo", "train", "--cloud", "local", "run.dta=x"], 2, "did you mean 'run.data'"),
        (["launch", "demo", "train", "--cloud", "local", "run.data=art://a b"], 2, "at character 8"),
        (["launch", "demo", "train", "--cloud", "local", "run.data=./nowhere"], 3, "no file or folder"),
        (["launch", "demo", "train", "--cloud", "local"], 3, "no artifact 'demo-data'"),
        (["launch", "demo", "train", "--cloud", "local", "--resume", "x", "run.data=."], 2, "no run 'x'"),
        (["launch", "demo", "all", "--cloud", "local", "train.steps=3"], 2, "unknown key 'steps'"),
        (["launch", "demo", "train", "--cloud", "local", "+x=${art:dta}"], 2, "did you mean 'data'"),
        (
            ["launch", "demo", "train", "--cloud", "local", "+x=${oc.env:HF_TOKEN}"],
            2,
            "would write the secret",
        ),
        (["launch", "demo", "all", "--cloud", "local", "steps=3"], 2, "does not say for which stage"),
        (["launch", "demo", "all", "--cloud", "local", "--from", "trin"], 2, "did you mean 'train'"),
        (["launch", "demo", "all", "--cloud", "local", "--from", "train", "--to", "prep"], 2, "comes after"),
        (["launch", "demo", "train", "--cloud", "local", "--nodes", "0"], 2, "--nodes"),
        (["launch", "demo", "all", "--cloud", "local", "--managed"], 2, "--managed means nothing on this"),
        (["launch", "demo", "train", "--cloud", "local", "--retries", "3"], 2, "--retries means nothing on"),
        (["launch", "demo", "train", "--cloud", "local", "--preemptions", "0"], 2, "--preemptions means not"),
        (["launch", "demo", "train", "--cloud", "aws", "--preemptions", "0"], 2, "is no managed job"),
        (["launch", "demo", "train", "--cloud", "aws", "--gpus", "H100"], 2, "write --gpus H100:1"),
        (["render", "--check"], 2, "--check goes with --all"),
        (["render", "--all", "demo"], 2, "takes no stage"),
        (["config", "show", "demo", "train", "--", "x"], 2, "only launch and render"),
        (["artifacts", "show", "art://demo-data"], 3, "no artifact 'demo-data'"),
        (["artifacts", "show", "s3://demo"], 2, "is not art://"),
        (["artifacts", "import", ".", "--name", "x", "--type", "modl"], 2, "did you mean 'model'"),
        (["lineage", "show", "art://x", "--up", "--down"], 2, "ask one"),
        (["runs", "show", "abc"], 2, "no run 'abc'"),
        (["check", "nowhere.py"], 2, "no file or folder nowhere.py"),
    ],
)
def test_a_mistake_is_one_clear_error(run: Run, words: list[str], code: int, message: str) -> None:
    result = run(*words)
    assert message in result.err, result.err
    assert result.code == code
    assert result.out == ""


def test_nothing_was_started_by_any_refusal(run: Run, project: Path) -> None:
    run("launch", "demo", "train", "--cloud", "local")
    run("launch", "demo", "all", "--cloud", "local", "train.steps=3")
    assert not list((project / ".nemo-sky").glob("runs/*/run.json"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NEMO_SKY_TRACKING", "http://127.0.0.1:9", "127.0.0.1:9"),
        ("NEMO_SKY_ARTIFACTS", "s3://fake-bucket/x", "fake-bucket"),
        ("NEMO_SKY_ARTIFACTS", "/proc/nemo-sky", "/proc/nemo-sky"),
    ],
)
def test_an_unreachable_service_is_refused_before_any_work(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fake")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake")
    result = run("launch", "demo", "prep", "--cloud", "local")
    assert result.code == 3, result
    assert message in result.err
    assert not list((project / ".nemo-sky").glob("runs/*/run.json"))


def test_a_dry_run_prints_the_task_and_starts_nothing(run: Run, project: Path) -> None:
    result = run("launch", "demo", "all", "--cloud", "aws", "--dry-run", "train.train.lr=1", "--json")
    assert result.code == 0
    assert not (project / ".nemo-sky" / "runs").exists()
    assert [item["stage"] for item in json.loads(result.out)] == ["demo/prep", "demo/train"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["--cloud", "local"], "on this machine"),
        (["--cloud", "aws"], "as a job on its own cluster"),
        (["--cloud", "aws", "--gpus", "H100:1", "--on-demand"], "as a job on its own cluster"),
        (["--cloud", "aws", "--spot"], "as a managed job: spot nodes can be preempted"),
        (["--cloud", "aws", "--spot-first", "--preemptions", "0"], "as a managed job: spot nodes can be"),
        (["--cloud", "aws", "--retries", "2"], "as a managed job: --retries 2: SkyPilot begins it again"),
        (["--cloud", "aws", "--managed"], "as a managed job: --managed: SkyPilot watches over it"),
    ],
)
def test_a_dry_run_says_what_would_recover_the_stage(run: Run, words: list[str], kind: str) -> None:
    result = run("launch", "demo", "train", *words, "--dry-run")
    assert result.code == 0, result.err
    assert f"\n# {kind}" in result.out
    (shown,) = json.loads(run("launch", "demo", "train", *words, "--dry-run", "--json").out)
    why = kind.removeprefix("as a managed job: ")
    assert (shown["managed"] or "").startswith(why) if why != kind else shown["managed"] is None
    assert ("job_recovery" in shown["task"].get("resources", {})) == (why != kind)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--budget 31", ["would reserve 5m at $360.00/h: $30.00", "$31.00, $1.00 of it not reserved"]),
        ("--budget 29", ["a launch would be refused: the budget", "$30.00 more is $1.00 too much"]),
        ("--deadline 2m", ["a launch would be refused: the deadline of 2m is 3m shorter"]),
        ("--max-hourly 300", ["a launch would be refused: 1 node cost $360.00 per hour, $60.00 more"]),
        ("--deadline 2h --work 3h", ["a launch would be refused: what is left is expected to take"]),
        ("--experiment new --experiment-budget 31", ["$31.00, $1.00 of it not reserved"]),
        ("--experiment old", ["a launch would be refused: the budget of experiment old is $50.00, of which"]),
        ("", []),
    ],
)
def test_a_dry_run_says_what_its_caps_would(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: list[str]
) -> None:
    (project / "mine").mkdir()
    profile = "backend: local\npython: current\ncontainers: false\nprice_per_hour: 360\n"
    (project / "mine" / "paid.yaml").write_text(profile)
    (project / "nemo-sky.yaml").write_text("clusters: mine\n")
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(project / "store"))
    ledger = open_ledger(open_store(str(project / "store")))
    about = About("demo", "train", "ann", "paid")

    def spent(held: accounts.Account) -> accounts.Account:
        held = accounts.set_budget(held, None, 50 * MICROS, "ann", 0)
        return accounts.reserve(held, Entry("r/1", "r", 25 * MICROS, 0, HOUR_MS, ended=HOUR_MS), about)

    before = ledger.change("experiments/old", spent)
    result = run("launch", "demo", "train", "--cluster", "paid", *words.split(), "--dry-run")
    assert result.code == 0, result.err
    assert all(text in result.err for text in said), result.err
    assert result.err.count("a launch would") == 1 + bool(said), "of its input, which nobody has made, too"
    assert ledger.accounts() == {"experiments/old": before}, "nothing is reserved"


def test_a_dry_run_needs_no_store_for_a_cap_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", "s3://nobody-has-this/at-all")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    result = run("launch", "demo", "prep", "--cloud", "local", "--budget", "5", "--dry-run")
    assert result.code == 0, result.err
    assert "$5.00 of it not reserved" in result.err


def test_a_dry_run_of_all_says_when_they_are_one_managed_job(run: Run) -> None:
    words = ("launch", "demo", "all", "--cloud", "aws", "--dry-run")
    assert "2 tasks to SkyPilot as one managed job" in run(*words, "--managed").err
    assert "one managed job" not in run(*words).err


def test_the_doctor_looks_for_a_stages_inputs(run: Run, project: Path) -> None:
    absent = run("doctor", "demo", "train", "--cloud", "local")
    assert absent.code == 3
    assert re.search(r"^ FAILED  data for demo/train: no artifact 'demo-data'.*\n +\S", absent.out, re.M)
    both = run("doctor", "demo", "all", "--cloud", "local")
    assert both.code == 0
    assert "data for demo/train: art://demo-data is made before it\n" in both.out
    (project / "some").mkdir()
    assert run("doctor", "demo", "train", "run.data=./some", "--cloud", "local").code == 0


def test_a_folder_of_this_machine_is_no_input_of_a_cloud(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusal says to do instead is what works."""
    folder = project / "some texts"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    words = ("demo", "train", "run.data=./some texts")
    with monkeypatch.context() as patch:
        patch.setenv("NEMO_SKY_ARTIFACTS", "s3://nobody-has-this/at-all")
        refused = run("launch", *words, "--cloud", "aws", "--ignore-estimates")
    assert refused.code == 3
    assert f"data for demo/train: aws cannot reach {folder}" in refused.err
    assert not (project / ".nemo-sky").exists()
    command, reference = re.findall(r"`nemo-sky (.*?)`.* (run\.data=\S+) ", refused.err)[0]
    mended = [{"NAME": "texts", "TYPE": "model"}.get(word, word) for word in shlex.split(command)]
    imported = run(*mended, "--meta", "step=0")
    assert imported.code == 0, imported.err
    taken = run("launch", "demo", "train", reference.replace("NAME", "texts"), "--cloud", "aws", "--dry-run")
    assert (taken.code, "refused" in taken.err) == (0, False), taken.err


def test_a_launch_refuses_secrets_that_would_be_copied(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", "s3://nobody-has-this/at-all")
    (project / "tokens").write_text("MY_TOKEN=hunter2\n")
    refused = run("launch", "demo", "prep", "--cloud", "aws", "--secrets", "tokens")
    assert refused.code == 3
    assert "secrets file: tokens would be copied to every node" in refused.err
    assert "hunter2" not in refused.err
    assert not (project / ".nemo-sky").exists()


def test_the_doctor_takes_secrets_from_where_a_launch_does(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "tokens").write_text("MY_TOKEN=hunter2\n")
    (home / "ours.yaml").write_text("extends: aws\nsecrets: [MY_TOKEN]\n")
    # No SkyPilot answers there, and so it starts none here.
    env = {**os.environ, "HOME": str(home), "SKYPILOT_API_SERVER_ENDPOINT": "http://127.0.0.1:1"}

    def says(*words: str) -> str:
        command = [sys.executable, "-m", "launcher.cli.main", "doctor", "demo", "prep"]
        command += ["--cluster", str(home / "ours.yaml"), "--managed", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert "hunter2" not in done.stdout + done.stderr
        return done.stdout

    assert "FAILED  secrets: the profile ours needs the secret MY_TOKEN" in says()
    given = says("--secrets", str(home / "tokens"))
    assert "     ok  secrets: all are set\n" in given
    assert f"     ok  secrets file: {home / 'tokens'} is not copied to the nodes\n" in given
    on_lambda = ["doctor", "demo", "prep", "--cloud", "lambda", "--spot"]
    command = [sys.executable, "-m", "launcher.cli.main", *on_lambda]
    shown = subprocess.run(command, capture_output=True, text=True, env=env).stdout
    assert " FAILED  place: demo/prep is to run on spot on lambda: no spot market" in shown


def test_the_doctor_refuses_what_it_would_ignore(run: Run) -> None:
    for words in (("--spot",), ("--nodes", "2"), ("--region", "x"), ("--managed",), ("--secrets", "x")):
        assert "none is named" in run("doctor", "--cloud", "aws", *words).err
    assert "--spot means nothing on this machine" in run("doctor", "demo", "train", "--spot").err


def test_arguments_after_the_dashes_go_to_the_script_alone(run: Run) -> None:
    result = run("render", "demo", "train", "--", "--cloud", "x y", "train.steps=1")
    assert "script.py --config \"$NEMO_SKY_CONFIG\" --cloud 'x y' train.steps=1" in result.out


def test_config_show_says_where_each_value_came_from(run: Run) -> None:
    result = run("config", "show", "demo", "train", "-c", "short", "train.lr=2e-3", "--json")
    shown = json.loads(result.out)
    assert shown["values"]["train"] == {"steps": 2, "lr": 0.002}
    assert shown["origin"]["train.steps"] == "config/short.yaml:3"
    assert shown["origin"]["train.lr"] == "override 'train.lr=2e-3'"
    assert shown["origin"]["save"] == "config/default.yaml:4"


def test_check_reports_every_problem_with_its_line(run: Run, project: Path) -> None:
    assert run("check").code == 0
    script = project / "recipes/demo/train/script.py"
    script.write_text(
        script.read_text().replace("launch =", "lunch =").replace("art://demo-data", "art://demo-dat")
    )
    (project / "recipes/demo/train/config/short.yaml").write_text("defaults: nothing\n")
    result = run("check")
    assert result.code == 4
    assert f"{script}:5: " in result.out
    assert "did you mean 'run.launch'" in result.out or "did you mean 'launch'" in result.out
    assert "no stage makes 'demo-dat'; did you mean 'demo-data'" in result.out
    assert "short.yaml:1: " in result.out
    assert json.loads(run("check", "--json").out)[0]["file"]


def test_render_all_is_current_until_a_recipe_changes(run: Run, project: Path) -> None:
    assert run("render", "--all", "--check").code == 4
    assert run("render", "--all").code == 0
    before = {path: path.read_bytes() for path in (project / "tasks").rglob("*.yaml")}
    assert len(before) == 6
    assert str(project) not in "".join(map(bytes.decode, before.values())), "a path of this machine"
    assert run("render", "--all", "--check").code == 0
    config = project / "recipes/demo/train/config/default.yaml"
    config.write_text(config.read_text().replace("10", "11"))
    (project / "tasks/demo/old.yaml").write_text("name: gone\n")
    stale = run("render", "--all", "--check")
    assert stale.code == 4
    assert "tasks/demo/train/train.yaml: out of date" in stale.out
    assert "tasks/demo/old.yaml: no stage makes it" in stale.out
    run("render", "--all")
    assert not (project / "tasks/demo/old.yaml").exists()


def test_a_dry_run_of_nano3_joins_every_stage(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMO_SKY_ARTIFACTS", str(tmp_path / "store"))
    printed = run("launch", "nano3", "all", "--cloud", "any", "--dry-run", "--project", str(ROOT)).out
    made: dict[str, str] = {}
    for block in re.split(r"^---\n", printed, flags=re.MULTILINE):
        name, nodes = re.findall(r"^# (nano3/\S+) with config 'default' on 'any', (\d+) node", block)[0]
        task = yaml.safe_load(block)
        assert task.get("num_nodes", 1) == int(nodes)
        assert (
            task["resources"].get("image_id", "docker:nvcr.io/nvidia/").startswith("docker:nvcr.io/nvidia/")
        )
        for artifact in re.findall(r"^# input \w+: art://(\S+) \(not made yet\)$", block, re.MULTILINE):
            assert artifact in made.values(), f"{name} reads what no earlier stage makes"
        (made[name],) = re.findall(r"^# makes: art://(\S+)$", block, re.MULTILINE)
    stages = ["data/prep/pretrain", "data/prep/rl", "data/prep/sft", "pretrain", "sft"]
    stages += ["model/export", "rl", "model/export-rl", "eval"]
    assert list(made) == [f"nano3/{stage}" for stage in stages], "model/import has no part in it"


def test_lists_are_json_for_programs(run: Run) -> None:
    stages = json.loads(run("recipes", "list", "--json").out)
    assert [stage["name"] for stage in stages] == ["demo/prep", "demo/train"]
    assert json.loads(run("runs", "list", "--json").out) == []
    assert json.loads(run("artifacts", "list", "--json").out) == []
    assert json.loads(run("version", "--json").out)["nemo-sky"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nemo-sky launch demo/", {"demo/all", "demo/prep", "demo/train"}),
        ("nemo-sky launch x y --cloud l", {"lambda", "local"}),
    ],
)
def test_the_shell_completes_stages_and_clouds(project: Path, line: str, wanted: set[str]) -> None:
    # What the script that `--install-completion` installs asks for; see click's documentation.
    env = {
        **os.environ,
        "_NEMO_SKY_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli.main"], capture_output=True, text=True, env=env
    )
    assert set(done.stdout.split()) == wanted, done


def test_a_closed_pipe_is_no_error(project: Path) -> None:
    command = f"{sys.executable} -m launcher.cli.main recipes list | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env={**os.environ}
    )
    assert "Traceback" not in done.stderr


def test_nothing_heavy_is_imported_at_start_up(project: Path) -> None:
    code = (
        "import sys; from launcher.cli.main import main\n"
        "try: main(['render', 'demo', 'train'])\n"
        "except SystemExit: pass\n"
        "heavy = {'sky', 'mlflow', 'boto3', 'torch', 'ray', 'optuna', 'rich.table'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
