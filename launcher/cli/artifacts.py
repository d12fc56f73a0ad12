"""``nemo-sky artifacts``: list, show, import, pull and name artifacts."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.common import (
    Context,
    JsonOption,
    ProjectOption,
    human_bytes,
    print_json,
    print_table,
    say,
)
from launcher.errors import UserError

app = typer.Typer(help="List, show, import, pull and name artifacts.", no_args_is_help=True)
UriArgument = Annotated[str, typer.Argument(metavar="URI", help="art://NAME[:vN|:latest|:ALIAS]")]


@app.command("list")
def list_(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this artifact's versions.")
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """List every version of every artifact, newest last."""
    from launcher import summary
    from launcher.artifacts import registry
    from launcher.artifacts.uri import ArtifactRef

    known: Context = context.obj
    known.no_script_args()
    store = summary.open_store(known.project(project))
    names = registry.names(store)
    if name is not None:
        names = [registry.resolve(store, ArtifactRef(name, None, None)).name]
    manifests = [
        registry.resolve(store, ArtifactRef(item, version, None))
        for item in names
        for version in registry.versions(store, item)
    ]
    if json:
        print_json([jsonlib.loads(manifest.to_json()) | {"uri": manifest.uri} for manifest in manifests])
        return
    rows = [
        (
            m.uri,
            m.type,
            human_bytes(m.bytes),
            len(m.files),
            m.created_at,
            m.producer.get("run_id", "imported"),
        )
        for m in manifests
    ]
    print_table(
        ("artifact", "type", "size", "files", "created (UTC)", "made by"), rows, empty="no artifacts yet"
    )


@app.command("show")
def show(
    context: typer.Context, uri: UriArgument, project: ProjectOption = None, json: JsonOption = False
) -> None:
    """Show one version: its metadata, files, inputs and what made it."""
    from launcher import summary

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    manifest = summary.find_artifact(found, uri)
    if json:
        print_json(jsonlib.loads(manifest.to_json()) | {"uri": manifest.uri})
        return
    place = summary.open_store(found).uri(manifest.base)
    rows: list[tuple[str, object]] = [
        ("type", manifest.type),
        ("created (UTC)", manifest.created_at),
        ("stored at", place),
        ("size", f"{human_bytes(manifest.bytes)} in {len(manifest.files)} files"),
        ("digest", manifest.digest),
        *((f"input {name}", value) for name, value in manifest.inputs.items()),
        *manifest.metadata.items(),
        *((f"made by: {key}", value) for key, value in manifest.producer.items()),
    ]
    print(manifest.uri)
    print_table(("field", "value"), rows, empty="")


@app.command("import")
def import_(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, help="The file or folder to bring in.")],
    name: Annotated[str, typer.Option("--name", help="The artifact's name.")],
    kind: Annotated[str, typer.Option("--type", help="Its type, for example model or pretrain-data.")],
    metadata: Annotated[
        list[str] | None,
        typer.Option("--meta", metavar="KEY=VALUE", help="A metadata field; may be repeated."),
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Bring data or a checkpoint from elsewhere in as a new version."""
    from launcher import summary
    from launcher.artifacts import registry
    from launcher.lineage import mlflow_view

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    fields = {}
    for text in metadata or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--meta {text!r} is not KEY=VALUE")
        fields[key] = _scalar(value)
    store = summary.open_store(found)
    store.check()
    mlflow_view.check(found.tracking)
    manifest = registry.import_path(store, path, name=name, type=kind, metadata=fields)
    mlflow_view.register(manifest, found.tracking, store)
    print_json({"uri": manifest.uri}) if json else print(manifest.uri)


@app.command("pull")
def pull(
    context: typer.Context,
    uri: UriArgument,
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Copy an artifact's files here, each verified by size and sha256."""
    from launcher import summary
    from launcher.artifacts import registry

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    manifest = summary.find_artifact(found, uri)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is not empty", hint="name a new folder")
    with summary.progress(f"pulling {manifest.uri}", manifest.bytes) as advance:
        registry.fetch(summary.open_store(found), manifest, to, progress=advance)
    if json:
        print_json({"uri": manifest.uri, "path": str(to), "bytes": manifest.bytes})
    else:
        say(f"{manifest.uri}: {len(manifest.files)} files, {human_bytes(manifest.bytes)}, verified, in {to}")


@app.command("alias")
def alias(
    context: typer.Context,
    uri: UriArgument,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="For example champion.")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Give a version a name of its own: afterwards art://NAME:ALIAS is that version."""
    from launcher import summary
    from launcher.lineage import mlflow_view

    known: Context = context.obj
    known.no_script_args()
    found = known.project(project)
    mlflow_view.check(found.tracking)
    manifest = summary.find_artifact(found, uri)
    mlflow_view.register(manifest, found.tracking, summary.open_store(found))
    mlflow_view.set_alias(found.tracking, manifest.name, name, manifest.version)
    print_json({"alias": f"art://{manifest.name}:{name}", "uri": manifest.uri}) if json else print(
        f"art://{manifest.name}:{name} is {manifest.uri}"
    )


def _scalar(text: str) -> object:
    """A metadata value as typed on the command line: a number, true or false, JSON, else text."""
    try:
        return jsonlib.loads(text)
    except ValueError:
        return text
