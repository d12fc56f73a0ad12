"""``nemo-sky plugin``: our recovery strategy in SkyPilot's API server."""

from __future__ import annotations

import subprocess
import sys

import typer

from launcher.cli.common import Context, JsonOption, print_json, say
from launcher.errors import Refused

app = typer.Typer(
    help="Put nemo-sky's recovery strategy into SkyPilot's API server on this machine, or take it out.",
    no_args_is_help=True,
)
RESTART = "`sky api stop` and `sky api start`: a server reads its plugins when it starts"
NOT_READY = 3


@app.command()
def install(context: typer.Context) -> None:
    """Name the plugin in SkyPilot's plugins.yaml; once more changes nothing."""
    from launcher.skyplugin import files

    known: Context = context.obj
    known.no_script_args()
    _here()
    file = files.path()
    print(f"{'added to' if files.add(file) else 'already in'} {file}")
    if not _consolidated():
        print("managed jobs must run in the API server: the plugin is not on a controller's own machine.")
        print("  set jobs.controller.consolidation_mode: true in ~/.sky/config.yaml")
    print(f"then {RESTART}; `nemo-sky plugin status` says whether it is there")


@app.command()
def status(context: typer.Context, json: JsonOption = False) -> None:
    """Say whether the API server recovers our spot jobs by our strategy; exits 3 when it does not."""
    from launcher.backends import sky_calls
    from launcher.skyplugin import files, names

    known: Context = context.obj
    known.no_script_args()
    file = files.path()
    listed = files.is_listed(file)
    try:
        server = sky_calls.plugins()
        trouble = None
    except Refused as error:
        server, trouble = {}, error.message
    ready = names.NAME in server
    half = next((name for name in server if name.startswith(names.NAME) and not ready), None)
    if json:
        print_json({"file": str(file), "listed": listed, "server": server, "ready": ready})
    elif ready:
        print(f"the API server has the plugin {names.NAME} {server[names.NAME]}, which recovers spot jobs")
    elif half:
        print(f"the API server has {half}: set it to true in its ~/.sky/config.yaml, then {RESTART}")
    elif trouble:
        print("no API server answers that could have the plugin: `sky api start` starts one")
        say(f"  {trouble}")
    else:
        print(f"the API server answers, and does not have the plugin {names.NAME}")
    if not ready and not half and not json:
        print(f"it is in {file}: {RESTART}" if listed else f"nor is it in {file}: `nemo-sky plugin install`")
    if not ready:
        raise SystemExit(NOT_READY)


@app.command()
def uninstall(context: typer.Context) -> None:
    """Take the plugin out of plugins.yaml. Refused while jobs that need it are active."""
    from launcher.backends import sky_calls
    from launcher.skyplugin import files, names

    known: Context = context.obj
    known.no_script_args()
    try:
        loaded = names.NAME in sky_calls.plugins()
    except Refused:
        loaded = False  # no server that runs, and so no job that it watches
    if loaded and (active := sky_calls.active_managed_jobs()):
        raise Refused(
            f"managed jobs are active: {', '.join(active)}; without the plugin their nodes would be leaked",
            hint="`nemo-sky runs cancel RUN` ends one",
        )
    file = files.path()
    print(f"taken out of {file}; {RESTART}" if files.remove(file) else f"it is not in {file}")


def _here() -> None:
    """Raises Refused unless the API server is of this machine, and its Python can import the plugin."""
    from launcher.backends import sky_calls

    if not sky_calls.is_local():
        raise Refused(
            "the API server is on another machine",
            hint="install nemo-sky into its SkyPilot's Python there, and run this command there",
        )
    words = [sys.executable, "-c", "import launcher.skyplugin.plugin"]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Refused(
            f"the API server's Python cannot import the plugin: {said[-1] if said else 'no reason given'}",
            hint="pip install nemo-sky into it (`pip install -e .` of this checkout), not only beside it",
        )


def _consolidated() -> bool:
    from launcher.backends import sky_calls

    return sky_calls.is_consolidated()
