"""The emulated machines' disk image: this machine's programs, and SkyPilot's runtime installed beforehand.

A launch on a real cloud downloads uv, Ray and SkyPilot's wheel to the node. The emulated machines reach
nothing but the rig, so what SkyPilot would install is there already, at the places where SkyPilot looks
(``sky/skylet/constants.py`` of 0.14.1). Built once per machine and set of versions, from PyPI alone.

An instance sees this machine's ``/usr``, the project's virtual environment and its Python read-only, and
nothing else of it: ``/etc`` is a selection; ``/home``, ``/root``, ``/var``, ``/tmp``, ``/run`` are its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.rigs.aws import folders

CACHE = Path("/var/tmp/nemo-sky-rigs")
INIT = Path(__file__).with_name("init.sh")
USER = "ubuntu"  # whom SkyPilot logs in as on AWS
UID = 1000
NEEDED = ("unshare", "nsenter", "ip", "sshd", "ssh", "rsync", "sudo", "patch", "curl", "pgrep", "setpriv")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What programs read in /etc, and no secret of this machine.
_ETC = (
    "alternatives", "bash.bashrc", "ca-certificates", "debian_version", "default", "inputrc", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "login.defs", "mime.types", "nsswitch.conf", "os-release",
    "pam.d", "profile", "profile.d", "protocols", "python3", "python3.11", "security", "services",
    "skel", "ssl/certs", "ssl/openssl.cnf", "terminfo",
)  # fmt: skip
_SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxSessions 200
MaxStartups 150:30:200
Subsystem sftp /usr/lib/openssh/sftp-server
Include /etc/ssh/sshd_config.d/*.conf
"""

# The commands are SkyPilot's own for a new node, less those that need a running cluster.
_BAKE = """\
set -euo pipefail
export HOME=/home/{user} UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1
cd ~
uv=~/.local/bin/uv
$uv venv -q --seed ~/skypilot-runtime --python {python}
export VIRTUAL_ENV=~/skypilot-runtime
$uv pip install -q "setuptools<70" "ray[default]=={ray}" "pydantic-core==2.41.1" "click<8.3.0" \
  "$(echo ~/.sky/wheels/{hash}/skypilot-*.whl)[aws, remote]"
echo {hash} > ~/.sky/wheels/current_sky_wheel_hash
$uv venv -q --seed --relocatable --system-site-packages --python {python} ~/sky-user-env
"""


class CannotHost(Exception):
    """This machine cannot run the rig; the message says why, for a test's skip."""


@dataclass(frozen=True)
class Image:
    """Overlay layers, uppermost first, and the folder with SkyPilot's wheel that they were made with."""

    layers: tuple[Path, ...]
    wheels: Path


def check_machine() -> None:
    """Raise CannotHost with the reason where this machine cannot host emulated instances."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotHost("namespaces with a network of their own need root on Linux")
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        raise CannotHost(f"missing programs: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        script = (
            f"cd {folder} && mkdir lower upper work root && mount -t overlay overlay "
            "-o lowerdir=lower,upperdir=upper,workdir=work root && ip link add rig type bridge"
        )
        namespaces = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork"]
        tried = subprocess.run([*namespaces, "bash", "-c", script], capture_output=True, text=True)
    if tried.returncode:
        raise CannotHost(f"no overlay or bridge in a new namespace: {tried.stderr.strip()}")


def binds() -> tuple[Path, ...]:
    """The paths of this machine that an emulated one sees, read-only, at the same places."""
    python = Path(sys.base_prefix).resolve()
    venv = Path(sys.prefix).resolve()
    outside = [path for path in (python, venv) if not path.is_relative_to("/usr")]
    return (Path("/usr"), *outside)


def ensure() -> Image:
    """The image, built when this machine has none of these versions yet (about 100 s, from PyPI)."""
    made_of = [
        version("skypilot"),
        sys.version,
        sys.base_prefix,
        Path(__file__).read_text(),
        INIT.read_text(),
    ]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:12]
    folder = _cache() / f"aws-{key}"
    with (_cache() / f"aws-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            folders.remove(folder)
            _build(folders.make(folder))
            (folder / "complete").touch()
    return Image((folder / "build" / "upper", folder / "base"), folder / "wheels")


def _cache() -> Path:
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    return CACHE


def _build(folder: Path) -> None:
    home = folder / "base" / "home" / USER
    _base(folder / "base", home)
    wheel_hash = _wheel(folder / "wheels", home)
    (home / ".local" / "bin").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as target:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", target, "uv"]
        subprocess.run(pip, check=True, timeout=300)
        for name in ("uv", "uvx"):
            shutil.copy(Path(target) / "bin" / name, home / ".local" / "bin")
    subprocess.run(["chown", "-R", f"{UID}:{UID}", str(home)], check=True)
    python = Path(sys.base_prefix).resolve() / "bin" / f"python3.{sys.version_info.minor}"
    _run_inside(folder, _BAKE.format(user=USER, python=python, ray=_ray_version(), hash=wheel_hash))


def _base(root: Path, home: Path) -> None:
    """A root with the folders, the accounts and the selection of /etc that an instance begins with."""
    for name in ("dev", "etc/ssh/sshd_config.d", "etc/sudoers.d", "home", "opt", "proc", "root", "run", "sys",
                 "tmp", "usr", "var/lib", "var/log", "var/tmp", "var/cache"):  # fmt: skip
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "var" / "run").symlink_to("/run")
    etc = root / "etc"
    for name in _ETC:
        source, target = Path("/etc") / name, etc / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        elif source.exists():
            shutil.copy(source, target)
    accounts = [
        ("root", 0, "/root", "/bin/bash"),
        (USER, UID, f"/home/{USER}", "/bin/bash"),
        ("sshd", 105, "/run/sshd", "/usr/sbin/nologin"),
        ("nobody", 65534, "/", "/usr/sbin/nologin"),
    ]
    passwd = [f"{name}:x:{uid}:{uid}::{home_of}:{shell}\n" for name, uid, home_of, shell in accounts]
    (etc / "passwd").write_text("".join(passwd))
    (etc / "group").write_text("".join(f"{name}:x:{uid}:\n" for name, uid, _, _ in accounts) + "tty:x:5:\n")
    (etc / "shadow").write_text("".join(f"{name}:*:19000:0:99999:7:::\n" for name, _, _, _ in accounts))
    (etc / "shadow").chmod(0o640)
    (etc / "sudoers").write_text(
        f"Defaults env_reset, !fqdn\nDefaults secure_path={PATH}\nroot ALL=(ALL) ALL\n"
        f"{USER} ALL=(ALL) NOPASSWD:ALL\n@includedir /etc/sudoers.d\n"
    )
    (etc / "sudoers").chmod(0o440)
    (etc / "ssh" / "sshd_config").write_text(_SSHD_CONFIG)
    (etc / "resolv.conf").touch()  # no name server: names fail at once
    (etc / "mtab").symlink_to("../proc/self/mounts")
    home.mkdir()
    for name in (".bashrc", ".profile"):
        shutil.copy(Path("/etc/skel") / name, home)


def _wheel(wheels: Path, home: Path) -> str:
    """Build SkyPilot's wheel as its API server does; its hash, which a node compares with its own."""
    program = (
        "from sky.backends.wheel_utils import build_sky_wheel, WHEEL_DIR\n"
        "wheel, wheel_hash = build_sky_wheel()\nprint(WHEEL_DIR, wheel, wheel_hash)"
    )
    # SkyPilot leaves a copy of the wheel in its temporary folder: that goes with the HOME made for it.
    with tempfile.TemporaryDirectory() as own:
        env = {**os.environ, "HOME": own, "TMPDIR": own, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300, check=True
        )
        made, wheel, wheel_hash = done.stdout.split()[-3:]
        shutil.copytree(made, wheels)
        shutil.copytree(wheel, home / ".sky" / "wheels" / wheel_hash)
    return wheel_hash


def _ray_version() -> str:
    program = "from sky.skylet import constants; print(constants.SKY_REMOTE_RAY_VERSION)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def _run_inside(folder: Path, script: str) -> None:
    """Run a script as the instances' user, with this machine's network, in a machine over the base layer."""
    build = folder / "build"
    build.mkdir()
    (build / "go").touch()
    (build / "boot.sh").write_text(
        f"cat > /run/bake.sh <<'END'\n{script}END\n"
        f"install -d -o {UID} -g {UID} /run/tmp\nexport TMPDIR=/run/tmp\n"  # no temporary file in the image
        f"exec setpriv --reuid {UID} --regid {UID} --clear-groups /bin/bash /run/bake.sh\n"
    )
    shown = [*binds(), Path("/etc/resolv.conf")]
    kept = {k: v for k, v in os.environ.items() if k.startswith("UV_") or k.lower().endswith("_proxy")}
    if bundle := os.environ.get("SSL_CERT_FILE"):
        kept["SSL_CERT_FILE"] = bundle
        shown.append(Path(bundle))
    env = {**kept, "PATH": PATH, "LANG": "C.UTF-8", "RIG_BINDS": "\n".join(map(str, shown))}
    namespaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*namespaces, "bash", str(INIT), str(build), f"{folder / 'base'}", "image"],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise RuntimeError(f"the image of the emulated machines could not be built:\n{done.stderr[-3000:]}")
    for path in binds():  # another checkout's machines are not to show where this one lies
        for point in (path, *path.parents[:-2]):
            with contextlib.suppress(OSError):  # it holds something, or is of a lower layer
                (build / "upper" / point.relative_to("/")).rmdir()
