"""The SkyPilot task: pure, accepted by SkyPilot's own schema, and right when bash runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import clusters, runspec, task
from launcher.errors import UserError

ROOT = Path(__file__).parents[2]
PROFILES = clusters.names(ROOT / "clusters")

SCRIPT = """# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0"]
# [tool.runspec]
# name = "demo/train"
# image = "nvcr.io/nvidia/nemo:25.11"
# [tool.runspec.run]
# launch = "{launch}"
# {cmd}
# [tool.runspec.resources]
# nodes = 2
# gpus_per_node = {gpus}
# [tool.runspec.env]
# OMP_NUM_THREADS = "1"
# [tool.nemo_sky]
# accelerator = "H100"
# procs_per_node = 2
# ///
"""


def spec_of(
    folder: Path, launch: str = "torchrun", gpus: object = 8, cmd: str = "", image: bool = True
) -> runspec.Runspec:
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "default.yaml").write_text("a: 1\n")
    path = folder / "train.py"
    text = SCRIPT.format(launch=launch, gpus=gpus, cmd=cmd)
    path.write_text(text if image else "".join(x for x in text.splitlines(True) if "image" not in x))
    return runspec.parse(path)


def build(spec: runspec.Runspec, profile: str = "aws", **changes: Any) -> task.Task:
    loaded = clusters.load(profile, ROOT / "clusters")
    given = {"script": "recipes/demo/train.py", "job_dir": "tasks/demo/train", "artifacts": "s3://b/p"}
    return task.build(spec, loaded, **{**given, **changes})


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert task.dump(build(spec)) == task.dump(build(spec))
    assert yaml.safe_load(task.dump(build(spec))) == build(spec)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("launch", "gpus"), [("torchrun", 8), ("ray", 0), ("direct", 1)])
def test_skypilot_accepts_every_profile(tmp_path: Path, profile: str, launch: str, gpus: int) -> None:
    import sky

    built = build(spec_of(tmp_path, launch, gpus), profile, run_id="r1")
    loaded = sky.Task.from_yaml_config(yaml.safe_load(task.dump(built)))
    assert loaded.num_nodes == 2
    assert loaded.envs["NEMO_SKY_RUN_ID"] == "r1"
    if gpus and profile != "local":
        (resources,) = loaded.resources
        assert resources.accelerators == {"H100": gpus}


@pytest.mark.parametrize("profile", [name for name in PROFILES if name not in ("local", "fake")])
def test_skypilot_accepts_several_types_of_gpu_and_tries_each_on_spot_first(
    tmp_path: Path, profile: str
) -> None:
    import sky

    place = clusters.load(profile, ROOT / "clusters")
    several = replace(place, accelerator=("A100-80GB", "H100"), spot_first=True)
    given: Any = {"script": "s", "job_dir": "j", "artifacts": "a"}
    built = task.build(spec_of(tmp_path), several, recovery={"strategy": "FAILOVER"}, **given)
    loaded = sky.Task.from_yaml_config(yaml.safe_load(task.dump(built)))
    assert isinstance(loaded.resources, list), "in this order"
    assert [(one.use_spot, *one.accelerators) for one in loaded.resources] == [
        (True, "A100-80GB"),
        (True, "H100"),
        (False, "A100-80GB"),
        (False, "H100"),
    ]
    assert {one.job_recovery["strategy"] for one in loaded.resources} == {"FAILOVER"}


def test_the_flag_beats_the_profile_and_the_profile_the_recipe(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    path = tmp_path / "p.yaml"
    path.write_text("nodes: 3\ngpus_per_node: 4\naccelerator: [A100, H100]\n")
    profile = clusters.load(str(path), tmp_path)
    assert task.shape_of(spec, profile) == task.Shape(3, 4)
    assert task.shape_of(spec, profile, nodes=5) == task.Shape(5, 4)
    built = task.build(spec, profile, script="s", job_dir="j", artifacts="a")
    assert built["resources"]["accelerators"] == ["A100:4", "H100:4"]


def test_the_network_between_nodes_is_asked_for_where_there_are_two(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert build(spec)["resources"]["network_tier"] == "best"
    assert "network_tier" not in build(spec, nodes=1)["resources"]


def test_gpus_of_no_known_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text('# /// script\n# [tool.runspec]\n# name = "demo/train"\n# ///\n')
    with pytest.raises(UserError, match="accelerator"):
        build(runspec.parse(path))


def test_the_recipes_environment_is_applied_and_the_profile_wins(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert build(spec)["envs"]["OMP_NUM_THREADS"] == "1"
    path = tmp_path / "p.yaml"
    path.write_text("env: {OMP_NUM_THREADS: 4}\n")
    profile = clusters.load(str(path), tmp_path)
    given: Any = {"script": "s", "job_dir": "j", "artifacts": "a"}
    assert task.build(spec, profile, **given)["envs"]["OMP_NUM_THREADS"] == "4"
    assert task.build(spec, profile, env={"OMP_NUM_THREADS": "8"}, **given)["envs"]["OMP_NUM_THREADS"] == "8"


def test_local_asks_for_nothing_that_sky_would_provision(tmp_path: Path) -> None:
    built = build(spec_of(tmp_path), "local")
    assert "resources" not in built
    assert "setup" not in built


def test_an_image_installs_the_agent_and_a_bare_node_the_scripts_needs(tmp_path: Path) -> None:
    in_image = build(spec_of(tmp_path))["setup"]
    assert "mlflow-skinny" in in_image
    assert "torch" not in in_image
    bare = build(spec_of(tmp_path, image=False))["setup"]
    assert "uv venv" in bare
    assert "torch==2.13.0" in bare


def bare_node(folder: Path, home: dict[str, str], elsewhere: dict[str, str]) -> tuple[int, str, list[str]]:
    """Run the set-up of a bare node under bash: its exit code, what it says, and what was called. The
    programs ``home`` are in ~/.local/bin, where SkyPilot puts uv, those ``elsewhere`` on PATH; each ends by
    its text."""
    calls = folder / "calls"
    calls.write_text("")
    for where, programs in ((folder / "home/.local/bin", home), (folder / "bin", elsewhere)):
        where.mkdir(parents=True)
        for name, end in programs.items():
            (where / name).write_text(f'#!/bin/bash\necho "{where.name} {name} $*" >> {calls}\n{end}\n')
            (where / name).chmod(0o755)
    for name in ("bash", "mkdir", "flock"):
        (folder / "bin" / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [folder / "bin" / "bash", "-c", build(spec_of(folder, image=False))["setup"]],
        env={"HOME": str(folder / "home"), "PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr, calls.read_text().splitlines()


def test_a_bare_node_takes_the_uv_that_skypilot_has_put_there(tmp_path: Path) -> None:
    code, said, calls = bare_node(tmp_path, {"uv": "exit 0"}, {"python3": "exit 1"})
    assert (code, said) == (0, "")
    venv = tmp_path / "home/.nemo-sky/venv"
    assert calls[0] == f"bin uv venv --quiet --python 3.11 {venv}"
    assert calls[1].startswith(f"bin uv pip install --quiet --python {venv}/bin/python pyyaml>=6 ")
    assert calls[1].endswith(" torch==2.13.0")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("uv", "elsewhere", "message", "last"),
    [
        (None, {"python3": "exit 1"}, "there is no uv, and pip cannot install it", "python3 -m pip"),
        (
            None,
            {"python3": "exit 0"},
            "uv cannot make a virtual environment of Python 3.11",
            "python3 -m pip",
        ),
        ("exit 2", {}, "uv cannot make a virtual environment of Python 3.11", "uv venv"),
        ('[ "$1" = venv ]', {}, "uv cannot install the dependencies that the script", "uv pip install"),
    ],
)
def test_a_set_up_that_cannot_go_on_says_at_what(
    tmp_path: Path, uv: str | None, elsewhere: dict[str, str], message: str, last: str
) -> None:
    code, said, calls = bare_node(tmp_path, {"uv": uv} if uv else {}, elsewhere)
    assert code == 1
    assert f"[nemo-sky] the set-up ends here: {message}" in said
    assert calls[-1].startswith(f"bin {last}")


def on_machine(folder: Path, text: str, nodes: int = 1) -> task.Task:
    (folder / "mine.yaml").write_text(f"extends: {ROOT / 'clusters' / 'aws.yaml'}\n{text}")
    profile = clusters.load(str(folder / "mine.yaml"), folder)
    given: Any = {"script": "s", "job_dir": "j", "artifacts": "a"}
    return task.build(spec_of(folder), profile, nodes=nodes, **given)


def test_a_machine_image_is_skypilots_own_and_its_node_makes_a_venv(tmp_path: Path) -> None:
    import sky

    built = on_machine(tmp_path, "infra: aws/us-east-1\nimage: ami-0abc123\n")
    assert "uv venv" in built["setup"]
    assert "torch==2.13.0" in built["setup"]
    (resources,) = sky.Task.from_yaml_config(yaml.safe_load(task.dump(built))).resources
    assert resources.extract_docker_image() is None
    assert resources.get_cloud_image_id() == {"us-east-1": "ami-0abc123"}
    (contained,) = sky.Task.from_yaml_config(build(spec_of(tmp_path))).resources
    assert contained.extract_docker_image() == "nvcr.io/nvidia/nemo:25.11"


@pytest.mark.parametrize(
    ("text", "nodes", "message"),
    [
        ("image: ami-0abc123\n", 1, "is there in one region of AWS, and none is named"),
        ("image: ami-0abc123\ninfra: gcp/us-east1\n", 1, "is a machine of aws, not of gcp"),
        ("image: projects/p/global/images/i\ninfra: aws/us-east-1\n", 1, "is a machine of gcp, not of aws"),
        ("image: ami-0abc123\ninfra: aws/us-east-1\n", 2, "`network_tier: best` for containers only"),
    ],
)
def test_a_machine_image_that_no_node_would_start_from_is_refused_at_its_line(
    tmp_path: Path, text: str, nodes: int, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        on_machine(tmp_path, text, nodes)
    assert caught.value.where == f"{tmp_path / 'mine.yaml'}:2"
    on_machine(tmp_path, "image: ami-0abc123\ninfra: aws/us-east-1\nnetwork_tier: standard\n", 2)


def fake_node(folder: Path, built: task.Task, **env: str) -> list[str]:
    """Run the task's own `run` under bash with a `python` that prints its arguments, one a line."""
    bin_dir = folder / "bin"
    bin_dir.mkdir(exist_ok=True)
    fake = bin_dir / "python"
    fake.write_text(
        '#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\nenv | grep NEMO_SKY | sort\n'
    )
    fake.chmod(0o755)
    base = {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "HOME": "/home/user name",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_TASK_ID": "sky-2026/11 21_demo",
    }
    done = subprocess.run(
        ["bash", "-c", built["run"]],
        env={**base, **built["envs"], **env},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_recipe_that_names_exit_codes_is_started_so_that_they_are_seen(tmp_path: Path) -> None:
    assert "  torchrun --nnodes " in build(spec_of(tmp_path))["run"]
    script = spec_of(tmp_path).script_path
    script.write_text(script.read_text().replace("# procs_per_node", "# no_retry = [3]\n# procs_per_node"))
    line = " ".join(fake_node(tmp_path, build(runspec.parse(script))))
    assert " -- python -m launcher.torchrun --nnodes 2 --node-rank 1 --nproc-per-node 8 " in line


def test_torchrun_meets_at_the_first_node(tmp_path: Path) -> None:
    words = fake_node(tmp_path, build(spec_of(tmp_path)))
    line = " ".join(words)
    assert "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr 10.0.0.7 --master-port 29500" in line
    assert words[:4] == ["-m", "launcher.agent", "--job", "tasks/demo/train"]
    script = words.index("recipes/demo/train.py")
    work = "/home/user name/.nemo-sky/work/sky-2026-11-21_demo/node-1"
    assert words[script + 1 : script + 3] == ["--config", f"{work}/config.yaml"]


def test_a_node_without_gpus_takes_the_recipes_ranks(tmp_path: Path) -> None:
    words = fake_node(tmp_path, build(spec_of(tmp_path)), SKYPILOT_NUM_GPUS_PER_NODE="0")
    assert words[words.index("--nproc-per-node") + 1] == "2"


def test_ray_runs_the_command_as_it_is(tmp_path: Path) -> None:
    words = fake_node(tmp_path, build(spec_of(tmp_path, "ray", 0)))
    assert words[4:7] == ["--ray", "--", "python"]


def test_odd_arguments_reach_the_script_whole(tmp_path: Path) -> None:
    odd = ["--note", "two words", "$HOME", "a'b", "{config}"]
    words = fake_node(tmp_path, build(spec_of(tmp_path), script_args=odd))
    assert words[words.index("--note") : words.index("--note") + 5] == odd


def test_other_braces_in_a_command_survive(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "direct", 0, cmd="cmd = 'bash -c \"echo ${HOME} {script} {config} {x}\"'")
    assert "{x}" in build(spec)["run"]
    assert "{script}" not in build(spec)["run"]


def test_a_working_directory_of_the_images_keeps_paths_right(tmp_path: Path) -> None:
    inside = tmp_path / "opt"
    inside.mkdir()
    spec = spec_of(tmp_path, "direct", 0, cmd=f'workdir = "{inside}"')
    words = fake_node(tmp_path, build(spec))
    assert f"{tmp_path}/recipes/demo/train.py" in words
    assert f"{tmp_path}/tasks/demo/train" in words


def test_spot_needs_both_the_profile_and_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("spot: true\n")
    profile = clusters.load(str(path), tmp_path)
    where: Any = {"script": "s", "job_dir": "j", "artifacts": "a"}
    assert task.build(spec_of(tmp_path), profile, **where)["resources"]["use_spot"] is True
    script = tmp_path / "train.py"
    script.write_text(script.read_text().replace("# procs_per_node", "# spot = false\n# procs_per_node"))
    assert "use_spot" not in task.build(runspec.parse(script), profile, **where)["resources"]


def rendered() -> list[Path]:
    """The committed tasks; job.yaml and train.yaml beside them are what the agent reads."""
    files = (ROOT / "tasks").rglob("*.yaml")
    return sorted(path for path in files if path.name not in ("job.yaml", "train.yaml"))


def test_skypilot_accepts_every_committed_task() -> None:
    import sky

    names = []
    for path in rendered():
        loaded = sky.Task.from_yaml_config(yaml.safe_load(path.read_text()))
        names.append(loaded.name)
    assert len(names) == len(set(names)) >= 7
