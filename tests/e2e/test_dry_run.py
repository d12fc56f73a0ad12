"""What `--dry-run` prints for each place, beside SkyPilot's own validation: no account, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CATALOGS = ROOT / "tests" / "fixtures" / "catalogs" / "v8"
CAPPED = "any --max-hourly 100"  # some regions of some clouds
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
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tasks of nano3's pretraining, each in a file."""
    folder = tmp_path_factory.mktemp("dry")
    env = {**os.environ, "NEMO_SKY_ARTIFACTS": str(folder / "store"), "HOME": str(folder)}
    env["NEMO_SKY_CATALOGS"] = str(CATALOGS)
    files = {}
    for place in PLACES:
        words = ("launch", "nano3", "pretrain", "--cloud", *place.split(), "--dry-run")
        done = subprocess.run(
            [sys.executable, "-m", "launcher.cli.main", *words],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        files[place] = folder / f"{place}.yaml"
        files[place].write_text(done.stdout)
    return files


def test_skypilot_accepts_the_task_for_every_place(printed: dict[str, Path], tmp_path: Path) -> None:
    catalogs = tmp_path / ".sky" / "catalogs" / "v8"
    shutil.copytree(CATALOGS, catalogs)
    (catalogs / "common").mkdir()
    clouds = [path.parent.name for path in catalogs.glob("*/vms.csv")]
    rows = f'AcceleratorName,Clouds\nH100,"{[*clouds, "kubernetes", "slurm"]!r}"\n'
    (catalogs / "common" / "accelerators.csv").write_text(rows)
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE, *map(str, printed.values())],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for place, path in printed.items():
        cloud, nodes, accelerators, regions = found[str(path)]
        if place == CAPPED:
            assert regions > 5
        else:
            assert (cloud.lower(), regions) == ("none" if place == "any" else place, 1)
        assert (nodes, accelerators) == (2, {"H100": 8})
