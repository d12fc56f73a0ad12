"""Another cookbook is read where it is: its layout, its runspecs, its configs, its faults."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import checks, cookbook, plan, project, render, runspec, task
from launcher.config import files
from launcher.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "cookbook"
NANO3 = "src/book/recipes/nano3"
STAGES = {
    "nano3/data/prep/pretrain",
    "nano3/pretrain",
    "nano3/pretrain-check",
    "nano3/rl",
    "nano3/sft",
    "steps/convert/export",
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURE, tmp_path / "Book")


@pytest.fixture
def root(tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without recipes of its own, beside the cookbook."""
    for name in ("NEMO_SKY_ARTIFACTS", "NEMO_SKY_TRACKING", "NEMO_SKY_RECIPES", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("BOOK_EXPORT_DIR", "BOOK_CONVERT_NODES", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "nemo-sky.yaml").touch()
    (tmp_path / "project" / "clusters").symlink_to(ROOT / "clusters")
    return tmp_path / "project"


@pytest.fixture
def place(root: Path, book: Path) -> project.Project:
    return project.find(root, book)


def planned(place: project.Project, name: str, *overrides: str, **more: Any) -> plan.Plan:
    family, _, stage = name.partition("/")
    request = replace(
        plan.Request(family, stage, cluster="any", overrides=overrides, draft=True),
        **more,
    )
    return plan.plans(request, place, plan.select(request, place))[0]


def rendered(place: project.Project, name: str, *overrides: str, **more: Any) -> task.Task:
    family, _, stage = name.partition("/")
    request = replace(
        plan.Request(family, stage, cluster="any", overrides=overrides, draft=True),
        **more,
    )
    return render.render(request, place)[0][1]


def names_in(place: project.Project) -> set[str]:
    specs, problems = runspec.discover(place.recipes)
    assert problems == []
    return {spec.name for spec in specs}


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_repository_and_its_recipes_folder_hold_the_same_stages(
    root: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names_in(project.find(root, book)) == STAGES  # docs/ holds an example of the same name as a step
    of_family = {name for name in STAGES if name.startswith("nano3/")}
    assert names_in(project.find(root, book / "src/book/recipes")) == of_family
    monkeypatch.setenv("NEMO_SKY_RECIPES", str(book))
    assert names_in(project.find(root)) == STAGES
    assert names_in(project.find(root, book / "src/book/steps")) == {"steps/convert/export"}
    monkeypatch.delenv("NEMO_SKY_RECIPES")
    (root / "nemo-sky.yaml").write_text("recipes: [recipes, ../Book]\n")
    assert names_in(project.find(root)) == STAGES
    with pytest.raises(UserError, match="no such folder"):
        project.find(root, book / "nowhere")


def test_what_belongs_to_the_project_is_no_other_cookbook(root: Path, book: Path) -> None:
    script = f"{NANO3}/stage0_pretrain/train.py"
    for recipes in (book, book / "src", book / NANO3):
        assert cookbook.root_of(book / script, project.find(root, recipes)) == book
    inside = shutil.copytree(book, root / "third_party" / "Book")
    assert cookbook.root_of(inside / script, project.find(root, inside)) == inside
    own = project.find(ROOT)
    assert cookbook.root_of(ROOT / "recipes/nano3/pretrain/train.py", own) is None
    (book / "pyproject.toml").unlink()  # a folder of scripts that is no repository
    assert cookbook.root_of(book / script, project.find(root, book / "src")) == book / "src"


def test_every_script_and_config_gives_a_task_that_skypilot_takes(place: project.Project) -> None:
    import sky

    count = 0
    for spec in runspec.discover(place.recipes)[0]:
        for path in files.configs(spec.config_dir):
            built = rendered(place, spec.name, config=path.stem)
            loaded = sky.Task.from_yaml_config(yaml.safe_load(task.dump(built)))
            assert loaded.run
            count += 1
    assert count == 10


def test_a_config_says_how_its_job_is_executed(place: project.Project, book: Path) -> None:
    built = rendered(place, "nano3/sft")
    assert built["resources"]["image_id"] == "docker:registry.example.org/nemo:26.02"
    assert built["resources"]["accelerators"] == "H100:8"
    (mount,) = built["file_mounts"]
    assert built["file_mounts"][mount] == str(book)
    assert mount.startswith("~/.nemo-sky/cookbooks/Book-")
    assert built["envs"]["START_FROM"] == "$NEMO_SKY_INPUTS/model"
    assert built["envs"]["PYTHONPATH"] == "/opt/Library/src:"  # not this machine's
    assert not {"container", "mounts"} & set(built["envs"])
    assert built["setup"].splitlines()[-3:] == [
        "rm -rf /opt/Library",
        "git clone --quiet https://git.example.org/team/Library.git /opt/Library",
        "git -C /opt/Library checkout --quiet feature/packing",
    ]
    lines = built["run"].splitlines()
    assert f'export NEMO_SKY_CODE="$HOME{mount[1:]}"' in lines
    assert lines.index("export LIBRARY_DEBUG=1") < next(n for n, x in enumerate(lines) if "agent" in x)
    assert f'"$code"/{NANO3}/stage1_sft/train.py --config "$NEMO_SKY_CONFIG"' in lines[-1]

    made = planned(place, "nano3/sft")
    assert {name: item.ref for name, item in made.inputs.items()} == {
        "data": "art://nano3-sft-data",
        "model": "art://nano3/pretrain/model",
    }
    assert made.values == {
        "dataset": {"packs": "$NEMO_SKY_INPUTS/data", "seq_length": "${art:data,pack_size}"}
    }
    assert (made.job["output"], made.job["checkpoints"]) == (None, None)


def test_sizes_and_scripts_are_the_configs(place: project.Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(name: str, *overrides: str, **more: Any) -> tuple[int, str]:
        built = rendered(place, name, *overrides, **more)
        return built.get("num_nodes", 1), built["resources"]["accelerators"]

    assert shape("nano3/pretrain") == (2, "H100:8")
    assert shape("nano3/pretrain", config="tiny") == (1, "H100:2")
    assert shape("steps/convert/export") == (4, "H100:8")
    assert shape("steps/convert/export", nodes=3) == (3, "H100:8")
    monkeypatch.setenv("BOOK_CONVERT_NODES", "6")
    assert shape("steps/convert/export") == (6, "H100:8")
    monkeypatch.setenv("BOOK_CONVERT_NODES", "six")
    with pytest.raises(UserError, match=r"run\.env\.nodes must be a whole number from 1, not 'six'") as wrong:
        shape("steps/convert/export")
    assert str(wrong.value.where).endswith("steps/convert/export/config/default.yaml:5")
    assert "check_train.py --config" in rendered(place, "nano3/pretrain", config="check")["run"]
    assert rendered(place, "steps/convert/export", "run.env.nodes=1")["resources"]["image_id"] == (
        "docker:registry.example.org/nemo:26.04"
    )
    assert 'code="$NEMO_SKY_CODE"; cd /opt/rl' in rendered(place, "nano3/rl")["run"]


def test_what_only_a_node_knows_is_left_to_it(
    place: project.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", "/here")
    monkeypatch.setenv("NEMO_RUN_DIR", "/here")
    monkeypatch.setenv("HOSTNAME", "here")
    monkeypatch.setenv("JUDGE_API_KEY", "hunter2")
    prep = planned(place, "nano3/data/prep/pretrain")
    assert prep.values["words"] == f"$NEMO_SKY_CODE/{NANO3}/stage0_pretrain/config/data_prep/words.txt"
    assert prep.values["output_dir"] == "$NEMO_SKY_WORK/data"
    assert prep.env == {"BOOK_CACHE": "$NEMO_SKY_WORK/cache"}
    assert prep.values["rows"] == 1000
    assert prep.composed.origin["rows"] == "config/data_prep/default.yaml:10"
    reinforced = planned(place, "nano3/rl").values
    assert reinforced["policy"]["tokens"] == 8192
    assert reinforced["data"] == {
        "train": "${art:data,train}",
        "digest": "${manifest:$NEMO_SKY_INPUTS/data,digest}",
    }
    assert reinforced["judge"] == {"address": "http://localhost:8000", "key": "${oc.env:JUDGE_API_KEY,''}"}
    assert planned(place, "nano3/pretrain").values["logger"] == {"wandb_project": None, "wandb_entity": None}


def test_a_draft_may_lack_what_a_launch_needs(
    place: project.Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = planned(place, "steps/convert/export").values
    assert values == {"language": "???", "out": "${oc.env:BOOK_EXPORT_DIR}/${language}"}
    with pytest.raises(UserError, match=r"language has no value"):
        planned(place, "steps/convert/export", draft=False)
    with pytest.raises(UserError, match="BOOK_EXPORT_DIR is not set") as missing:
        planned(place, "steps/convert/export", "language=de", draft=False)
    assert str(missing.value.where).endswith("convert/export/config/default.yaml:10")
    monkeypatch.setenv("BOOK_EXPORT_DIR", "/out")
    assert planned(place, "steps/convert/export", "language=de", draft=False).values["out"] == "/out/de"


PRETRAIN, SFT, RL = (
    f"{NANO3}/stage0_pretrain/config/default.yaml",
    f"{NANO3}/stage1_sft/config/default.yaml",
    f"{NANO3}/stage2_rl/config/default.yaml",
)


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        (
            f"{NANO3}/stage0_pretrain/data_prep.py",
            '"direct"',
            '"python"',
            "{file}:12: run.launch must be one of",
        ),
        (f"{NANO3}/stage2_rl/train.py", "{script}", "run.sh", "{file}:9: run.cmd has no {{script}}"),
        (PRETRAIN, "registry.example.org", "nvcr.io/nvidian", "{file}:4: internal-image: 'nvcr.io/nvidian"),
        (
            f"{NANO3}/stage0_pretrain/config/data_prep/default.yaml",
            "${oc.env:NEMO_RUN_DIR,${oc.env:PWD}}/data",
            "/lustre/users/me/data",
            "{file}:8: private-path: '/lustre/users/me/data'",
        ),
        (PRETRAIN, "  load: ${checkpoint.save}\n", "", "{file}:17: no-resume: checkpoint.load is None"),
        (PRETRAIN, "${run.wandb.project}", "mine", "{file}:13: forced-tracker: logger.wandb_project"),
        (SFT, "${art:data,path}", "/path/to/packs", "{file}:15: placeholder: '/path/to/packs'"),
        (SFT, "${auto_mount:git+https://git", "/mine:/mine", "{file}:7: run.env.mounts.0: '/mine:/mine"),
        (RL, "${policy.batch}", "four", "{file}:8: policy.tokens: mul takes two numbers, not 2048, 'four'"),
        (RL, "nano3-rl-data:latest", "nano3 rl", "{file}:2: run.data: 'nano3 rl' is not an artifact"),
        (RL, "${art:data,train}", "${art:dta,train}", "data.train: ${{art:dta,train}} names no input"),
    ],
)  # fmt: skip
def test_its_faults_are_found_by_file_and_line(
    place: project.Project, book: Path, file: str, old: str, new: str, found: str
) -> None:
    assert checks.check_project(place)[0] == []
    changed(book / file, old, new)
    problems, _ = checks.check_project(place)
    wanted = found.format(file=book / file)
    assert any(wanted in str(problem) for problem in problems), "\n".join(map(str, problems))


def test_faults_that_no_task_can_mend_are_refused(place: project.Project, book: Path) -> None:
    changed(book / PRETRAIN, "registry.example.org/nemo:26.02", "/home/me/nemo.sqsh")
    with pytest.raises(UserError, match=r"'/home/me/nemo.sqsh' is a file of one machine") as refused:
        rendered(place, "nano3/pretrain")
    assert "run.env.container=" in str(refused.value)
    built = rendered(place, "nano3/pretrain", "run.env.container=docker.io/me/nemo:1")
    assert built["resources"]["image_id"] == "docker:docker.io/me/nemo:1"
    with pytest.raises(UserError, match="replaces /opt/Library of a container image"):
        rendered(place, "nano3/sft", cluster="local")
    for folder in ("/", "/opt", "Library", "/opt/../etc"):
        mounts = f"run.env.mounts=['${{auto_mount:git+https://x.org/y@main,{folder}}}']"
        with pytest.raises(UserError, match="no folder of the image"):
            rendered(place, "nano3/sft", mounts)
    # A script that a strict reader refuses still runs: its own launcher is not strict.
    changed(book / f"{NANO3}/stage0_pretrain/data_prep.py", '"direct"', '"python"')
    assert planned(place, "nano3/data/prep/pretrain").job["launch"] == "direct"


def test_other_cookbooks_are_not_written_to_tasks(place: project.Project) -> None:
    with pytest.raises(UserError, match="the project's own stages"):
        render.write(place)


def test_recipes_are_listed_once_for_a_whole_launch(place: project.Project) -> None:
    request = plan.Request("nano3", "all", cluster="any", draft=True)
    drafts = plan.plans(request, place, plan.select(request, place))
    assert len(drafts) == 5
    assert len({id(draft.recipes) for draft in drafts}) == 1
    assert drafts[0].recipes.specs is drafts[-1].recipes.specs


def test_the_command_line(
    root: Path,
    book: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from launcher.cli.main import main

    monkeypatch.chdir(root)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    code, out, _ = run("--recipes", "../Book", "recipes", "list", "--json")
    assert (code, {f"{x['family']}/{x['stage']}" for x in json.loads(out)}) == (0, STAGES)
    code, out, err = run("--recipes", str(book), "check")
    assert (code, out) == (0, "")
    code, out, err = run("--recipes", "../Book", "config", "show", "nano3", "pretrain", "-c", "tiny")
    assert code == 0
    assert "nano3-pretrain-data-tiny:v3" in out
    code, out, err = run("--recipes", "../Book", "config", "show", "nano3", "pretrane")
    assert (code, "did you mean 'nano3/pretrain'" in err) == (2, True)
    code, out, err = run("--recipes", "../Bok", "recipes", "list")
    assert (code, "no such folder" in err) == (2, True)
    code, out, err = run("--recipes", "../Book", "render", "--all")
    assert (code, "without --recipes" in err) == (2, True)
