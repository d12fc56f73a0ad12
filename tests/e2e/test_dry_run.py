"""What `--dry-run` prints for each place, beside SkyPilot's own validation: no account, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CATALOGS = ROOT / "tests" / "fixtures" / "catalogs" / "v8"
CAPPED = "any --max-hourly 100"  # some regions of some clouds
OF_SEVERAL = {
    "several spot-first": ("--spot-first",),
    "several capped": ("--max-hourly", "120"),
    "several both": ("--spot-first", "--max-hourly", "120"),
}
PLACES = ("any", "aws", "azure", "gcp", "kubernetes", "lambda", "nebius", "runpod", "slurm", CAPPED)
# Without catalogs in its HOME SkyPilot would download them. What it asks clusters is answered here: of
# Kubernetes there is none at hand, and Slurm has Pyxis.
VALIDATE = """
import json, sys, yaml, sky
from sky.clouds import kubernetes, slurm
kubernetes.kubernetes_utils.get_all_kube_context_names = lambda: []
slurm.Slurm.existing_allowed_clusters = lambda *_, **__: ["ours"]
slurm.slurm_utils.check_pyxis_enabled = lambda cluster: True
slurm.slurm_utils.check_fuse_enabled = lambda cluster: False
found = {}
for path in sys.argv[1:]:
    task = sky.Task.from_yaml_config(yaml.safe_load(open(path)))
    resources = next(iter(task.resources))
    task.validate(skip_file_mounts=True, skip_workdir=True)
    found[path] = [str(resources.cloud), task.num_nodes, resources.accelerators, len(task.resources)]
    asked = resources.to_yaml_config()
    asked["config"] = resources.cluster_config_overrides
    found[path].append(asked)
    found[path].append([[one.use_spot, *one.accelerators, one.max_hourly_cost] for one in task.resources])
print(json.dumps(found))
"""
# All that a profile can ask of a place, and how SkyPilot reads it.
ON_AWS = """\
extends: aws
infra: aws/us-east-1
disk_size: 3000
disk_tier: high
ports: [8265, 9000-9010]
labels: {team: fake}
priority: 7
idle_minutes: 3
"""
AS_SKYPILOT_HAS_IT = {
    "disk_size": 3000,
    "disk_tier": "high",
    "network_tier": "best",
    "ports": ["8265", "9000-9010"],
    "labels": {"team": "fake"},
    "priority": 7,
    "autostop": {"idle_minutes": 3, "down": True},
}
# SkyPilot takes no list of them beside markets or regions.
SEVERAL = """\
extends: any
accelerator: [H200, H100]
"""
ON_SLURM = """\
extends: slurm
config: {slurm: {sbatch_options: {qos: high, account: fake, time: "24:00:00"}}}
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tasks of nano3's pretraining, each in a file."""
    folder = tmp_path_factory.mktemp("dry")
    env = {**os.environ, "NEMO_SKY_ARTIFACTS": str(folder / "store"), "HOME": str(folder)}
    env["NEMO_SKY_CATALOGS"] = str(CATALOGS)
    places = {place: ("--cloud", *place.split()) for place in PLACES}
    profiles = tmp_path_factory.mktemp("profiles")
    for name, text in (("on-aws", ON_AWS), ("on-slurm", ON_SLURM), ("several", SEVERAL)):
        (profiles / f"{name}.yaml").write_text(text)
        places[name] = ("--cluster", str(profiles / f"{name}.yaml"))
    for name, flags in OF_SEVERAL.items():
        places[name] = (*places["several"], *flags)
    files = {}
    for place, words in places.items():
        done = subprocess.run(
            [sys.executable, "-m", "launcher.cli.main", "launch", "nano3", "pretrain", *words, "--dry-run"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        files[place] = folder / f"{place}.yaml"
        files[place].write_text(done.stdout)
        refused = "nano3/pretrain: a launch would be refused: nano3/pretrain asks for 2 nodes on runpod"
        assert (refused in done.stderr) == (place == "runpod"), done.stderr
    return files


@pytest.fixture(scope="module")
def read(printed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What SkyPilot, which finds each task valid, has read: its cloud, nodes, GPUs, the number of resources
    that may do, and what the first of them asks for."""
    home = tmp_path_factory.mktemp("home")
    catalogs = home / ".sky" / "catalogs" / "v8"
    shutil.copytree(CATALOGS, catalogs)
    (catalogs / "common").mkdir()
    clouds = [path.parent.name for path in catalogs.glob("*/vms.csv")]
    here = f'"{[*clouds, "kubernetes", "slurm"]!r}"'
    rows = f"AcceleratorName,Clouds\nH100,{here}\nH200,{here}\n"
    (catalogs / "common" / "accelerators.csv").write_text(rows)
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE, *map(str, printed.values())],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {place: found[str(path)] for place, path in printed.items()}


def test_skypilot_accepts_the_task_for_every_place(read: dict[str, list[Any]]) -> None:
    for place in PLACES:
        cloud, nodes, accelerators, regions, *_ = read[place]
        if place == CAPPED:
            assert regions > 5
        else:
            assert (cloud.lower(), regions) == ("none" if place == "any" else place, 1)
        assert (nodes, accelerators) == (2, {"H100": 8})


def test_skypilot_accepts_several_types_of_gpu_in_every_market_and_region(read: dict[str, list[Any]]) -> None:
    assert [kind for _, kind, _ in read["several"][5]] == ["H200", "H100"]
    both = [[True, "H200", None], [True, "H100", None], [False, "H200", None], [False, "H100", None]]
    assert read["several spot-first"][5] == both
    for name in ("several capped", "several both"):
        ways = read[name][5]
        assert {limit for *_, limit in ways} == {60}
        assert {kind for _, kind, _ in ways} == {"H200", "H100"}
        assert ways == sorted(ways, key=lambda way: (not way[0], way[1] != "H200"))
        assert {spot for spot, *_ in ways} == ({False} if name == "several capped" else {True, False})


def test_what_a_profile_asks_of_a_place_reaches_skypilot(read: dict[str, list[Any]]) -> None:
    asked = read["on-aws"][4]
    assert {key: asked.get(key) for key in AS_SKYPILOT_HAS_IT} == AS_SKYPILOT_HAS_IT
    options = {"qos": "high", "account": "fake", "time": "24:00:00"}
    assert read["on-slurm"][4]["config"] == {"slurm": {"sbatch_options": options}}
