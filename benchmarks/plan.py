"""`nemo-sky plan nano3 pretrain --cloud any` beside `sky launch --dryrun` of the same task, in one run.

    python benchmarks/plan.py [--catalogs DIR] [--repeats 5] [--port 46991] [--no-sky] [--save]

DIR holds CLOUD/vms.csv as SkyPilot keeps them, and common/accelerators.csv; without it the tests' small
catalogs are used, and SkyPilot's list of accelerators is made of them. Where a file of AWS or GCP is smaller
than SkyPilot's whole one (3,654,773 and 2,235,010 bytes), its lines are repeated under other instance types
up to that size. SkyPilot gets the same files in a home of its own, an API server on a port of its own that
runs before the clock does, and is told before each of its commands that the clouds of DIR are enabled. So it
needs no account to list places and prices and to choose one; the dry run may then end in an error where the
chosen cloud's own library or key is missing, which is counted as done and said. The commands take turns, so
that a busy moment of the machine hits them alike. With --save the result is added to
benchmarks/results/plan.json.

Target: a plan takes under a second of processor time, and does not import sky.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from launcher.money.places import LAUNCHABLE

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests" / "fixtures" / "catalogs" / "v8"
RESULTS = ROOT / "benchmarks" / "results" / "plan.json"
WHOLE = {"aws": 3_654_773, "gcp": 2_235_010}
TARGET_S = 1.0
PLAN: list[Path | str] = [
    sys.executable,
    "-m",
    "launcher.cli.main",
    "plan",
    "nano3",
    "pretrain",
    "--cloud",
    "any",
    "--json",
]
DRY_RUN: list[Path | str] = [BIN / "sky", "launch", "--dryrun", "--yes", "tasks/nano3/pretrain.yaml"]
CHOSE = "Considered resources"
BOOTED = "on-boot-check finished"
ENABLE = """
import sys
from sky import check, global_user_state as state
from sky.clouds.cloud import CloudCapability
for capability in CloudCapability:
    state.set_enabled_clouds(sys.argv[1:], capability, "default")
state.set_allowed_clouds(check._get_workspace_allowed_clouds("default"), "default")
"""
IMPORTS = """
import sys
from launcher.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    if end.code:
        raise
print(sorted({"sky", "mlflow", "torch", "pandas"} & set(sys.modules)), file=sys.stderr)
"""


def whole(source: Path, target: Path) -> None:
    """Copy the catalogs, those of ``WHOLE`` repeated to their full size. A list of accelerators that is there
    SkyPilot does not download."""
    shutil.copytree(source, target)
    listed = target / "common" / "accelerators.csv"
    if not listed.exists():
        clouds: dict[str, set[str]] = {}
        for path in target.glob("*/vms.csv"):
            with path.open() as file:
                for row in csv.DictReader(file):
                    if name := row["AcceleratorName"]:
                        clouds.setdefault(name, set()).add(path.parent.name)
        listed.parent.mkdir(exist_ok=True)
        with listed.open("w") as file:
            rows = csv.writer(file)
            rows.writerow(["AcceleratorName", "Clouds"])
            rows.writerows([name, str(sorted(where))] for name, where in sorted(clouds.items()))
    for cloud, size in WHOLE.items():
        path = target / cloud / "vms.csv"
        if not path.is_file():
            continue
        path.chmod(0o644)
        _, *lines = path.read_text().splitlines()
        named = [line for line in lines if not line.startswith(",")]
        with path.open("a") as file:
            number = 0
            while file.tell() < size and named:
                number += 1
                file.writelines(f"other{number}-{line}\n" for line in named if "H100" not in line)


def seconds(command: list[Path | str], env: dict[str, str]) -> tuple[float, float]:
    """Wall and processor time of a command that must succeed, or have chosen a place. The time that
    SkyPilot's server takes for it is not in the latter."""
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, os.times()
    if done.returncode and CHOSE in done.stdout:
        print(f"it chose a place, then: {(done.stderr or done.stdout).strip().splitlines()[-1][:200]}")
    elif done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def serve(port: int, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """SkyPilot's API server in a process group of its own, once it answers and has looked for clouds: it
    forgets those that it was told of before."""
    command = [
        sys.executable,
        "-m",
        "sky.server.server",
        "--port",
        str(port),
        "--metrics-port",
        str(port + 1),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    end = time.monotonic() + 300
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2)
        except OSError:
            time.sleep(0.5)
        else:
            if BOOTED in log.read_text():
                return server
            time.sleep(0.5)
    stop(server)
    raise SystemExit(f"SkyPilot's API server did not come up:\n{log.read_text()[-2000:]}")


def enable(env: dict[str, str]) -> None:
    """Tell SkyPilot that the clouds are enabled. A dry run that found no key forgets it again."""
    names = sorted(path.parent.name for path in Path(env["NEMO_SKY_CATALOGS"]).glob("*/vms.csv"))
    told = [name for name in names if name in LAUNCHABLE]
    subprocess.run([sys.executable, "-c", ENABLE, *told], env=env, check=True, capture_output=True)


def stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--catalogs", type=Path, default=SMALL)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--port", type=int, default=46991)
    parser.add_argument("--no-sky", action="store_true")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        catalogs = home / ".sky" / "catalogs" / "v8"
        catalogs.parent.mkdir(parents=True)
        whole(asked.catalogs, catalogs)
        size = sum(path.stat().st_size for path in catalogs.glob("*/vms.csv"))
        lines = sum(path.read_bytes().count(b"\n") for path in catalogs.glob("*/vms.csv"))
        print(
            f"catalogs: {len(list(catalogs.glob('*/vms.csv')))} clouds, {lines:,} lines, {size / 1e6:.1f} MB"
        )
        env = {
            **os.environ,
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "NEMO_SKY_CATALOGS": str(catalogs),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(asked.port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        }
        imports = subprocess.run(
            [sys.executable, "-c", IMPORTS, *PLAN[3:]],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        heavy = imports.stderr.strip().splitlines()[-1]
        print(f"heavy modules that a plan imports: {heavy}")
        commands: dict[str, list[Path | str]] = {"nemo-sky plan": list(PLAN)}
        server = None
        try:
            if not asked.no_sky:
                server = serve(asked.port, env, home / "server.log")
                commands["sky launch --dryrun"] = list(DRY_RUN)
            for command in commands.values():  # once, so that byte code and page cache are warm for all
                if command != PLAN:
                    enable(env)
                seconds(command, env)
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(asked.repeats):
                for name, command in commands.items():
                    if command != PLAN:
                        enable(env)
                    times[name].append(seconds(command, env))
        finally:
            if server:
                stop(server)
    wall = {name: statistics.median(one[0] for one in taken) for name, taken in times.items()}
    cpu = {name: statistics.median(one[1] for one in taken) for name, taken in times.items()}
    print(f"{'command':22} {'wall s':>8} {'cpu s':>8} {'wall / plan':>12}")
    for name in times:
        print(f"{name:22} {wall[name]:8.2f} {cpu[name]:8.2f} {wall[name] / wall['nemo-sky plan']:12.1f}")
    if asked.save:
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
            "catalog_lines": lines,
            "catalog_mb": round(size / 1e6, 1),
            "repeats": asked.repeats,
            "heavy_imports": heavy,
            "wall_s": {name: round(value, 3) for name, value in wall.items()},
            "cpu_s": {name: round(value, 3) for name, value in cpu.items()},
            "wall_over_plan": {name: round(wall[name] / wall["nemo-sky plan"], 1) for name in times},
        }
        runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
        RESULTS.write_text(json.dumps({"runs": [*runs, found]}, indent=1) + "\n")
    if heavy != "[]" or cpu["nemo-sky plan"] >= TARGET_S:
        raise SystemExit("over the target")


if __name__ == "__main__":
    main()
