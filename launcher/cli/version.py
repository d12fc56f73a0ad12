"""``nemo-sky version``: ours and those of the libraries that a run depends on."""

from __future__ import annotations

import platform

import typer

from launcher import __version__
from launcher.cli.common import Context, JsonOption, print_json

LIBRARIES = ("skypilot", "mlflow", "omegaconf", "boto3", "torch", "megatron-core", "ray", "trl")


def version(context: typer.Context, json: JsonOption = False) -> None:
    """Show the versions of nemo-sky and the libraries it drives."""
    from importlib import metadata

    known: Context = context.obj
    known.no_script_args()
    versions: dict[str, str | None] = {"nemo-sky": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    if json:
        print_json(versions)
        return
    for name, found in versions.items():
        print(f"{name:14} {found or 'not installed'}")
