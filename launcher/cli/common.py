"""What the commands share: the project, the way a stage is named, and how facts are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.project import Project


_Parsed = TypeVar("_Parsed")


def complete_stage(incomplete: str) -> list[str]:
    """Stages for the shell's completion, as FAMILY/STAGE, with `all` for each family."""
    from launcher import project, runspec

    specs, _ = runspec.discover(project.find().recipes)
    names = {spec.name for spec in specs} | {f"{spec.family}/all" for spec in specs}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_cluster(incomplete: str) -> list[str]:
    """Profiles for the shell's completion."""
    from launcher import clusters, project

    return [name for name in clusters.names(project.find().clusters) if name.startswith(incomplete)]


ProjectOption = Annotated[
    Path | None,
    typer.Option("--project", metavar="DIR", help="The project's folder; default: found from here upwards."),
]
RecipesOption = Annotated[
    Path | None,
    typer.Option(
        "--recipes",
        metavar="DIR",
        help="Another cookbook: its folder of recipes, or a checkout of its repository.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
CloudOption = Annotated[
    str | None,
    typer.Option(
        "--cloud",
        metavar="NAME",
        help="Where to run: a profile of clusters/, such as local or aws.",
        autocompletion=complete_cluster,
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME|PATH", help="Any other profile, by name or by path."),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="NAME|PATH", help="The stage's config; default: as the recipe says."
    ),
]
NodesOption = Annotated[int | None, typer.Option("--nodes", min=1, help="Number of nodes.")]
RegionOption = Annotated[
    str | None, typer.Option("--region", metavar="NAME", help="The cloud's region; of Slurm, the cluster.")
]
ZoneOption = Annotated[
    str | None, typer.Option("--zone", metavar="NAME", help="The region's zone; of Slurm, the partition.")
]
GpusOption = Annotated[
    str | None, typer.Option("--gpus", metavar="TYPE:COUNT", help="GPUs of each node, such as H100:8.")
]
SpotOption = Annotated[bool, typer.Option("--spot", help="On spot nodes only, recovered by SkyPilot.")]
OnDemandOption = Annotated[bool, typer.Option("--on-demand", help="Not on spot, whatever the profile says.")]
SpotFirstOption = Annotated[
    bool, typer.Option("--spot-first", help="On spot while there is some, else on-demand.")
]
ManagedOption = Annotated[
    bool, typer.Option("--managed", help="As a managed job, which SkyPilot recovers by itself.")
]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="How often a managed job that failed is begun again.")
]
SecretsOption = Annotated[
    Path | None,
    typer.Option("--secrets", metavar="FILE", help="NAME=value lines that the job needs and no file shows."),
]
StageArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="STAGE",
        help="FAMILY STAGE or FAMILY/STAGE, then changes to its config: key=value, +key=value to add a "
        "key, ~key to remove one.",
        show_default=False,
        autocompletion=complete_stage,
    ),
]


@dataclass
class Context:
    """What stands on the command line outside the command's own options."""

    argv: Sequence[str]
    script_args: tuple[str, ...]
    project_dir: Path | None = field(default=None)
    recipes_dir: Path | None = field(default=None)

    def project(self, named: Path | None) -> Project:
        from launcher import project

        return project.find(named or self.project_dir, self.recipes_dir)

    def no_script_args(self) -> None:
        if self.script_args:
            raise UserError("only launch and render pass arguments on to a script after `--`")


@dataclass(frozen=True)
class StageName:
    """A stage as typed, and the config overrides that followed it."""

    family: str
    stage: str
    overrides: tuple[str, ...]


def stage_name(words: Sequence[str]) -> StageName:
    """``["tiny", "data", "prep", "sft", "a=1"]`` is stage ``data/prep/sft`` of ``tiny`` with one override."""
    cut = next((i for i, word in enumerate(words) if "=" in word or word[:1] in "+~"), len(words))
    named = "/".join(words[:cut]).strip("/")
    family, _, stage = named.partition("/")
    if not family or not stage:
        raise UserError(
            f"name a stage as FAMILY STAGE, not {named!r}",
            hint="for example `tiny pretrain`; `nemo-sky recipes list` shows them all",
        )
    for word in words[cut:]:
        if "=" not in word and word[:1] not in "+~":
            raise UserError(
                f"{word!r} stands after the overrides, where only key=value, +key=value or ~key can"
            )
    return StageName(family, stage, tuple(words[cut:]))


def cluster_name(cloud: str | None, cluster: str | None, default: str | None) -> str:
    """``--cloud`` and ``--cluster`` name the same thing; a launch has no default place."""
    if cloud and cluster:
        raise UserError(f"--cloud {cloud} and --cluster {cluster} both say where to run; give one")
    chosen = cloud or cluster or default
    if chosen is None:
        raise UserError(
            "say where to run: --cloud NAME",
            hint="`--cloud local` is this machine; profiles stand in clusters/",
        )
    return chosen


def market(spot: bool, on_demand: bool, spot_first: bool) -> str | None:
    """The one of the three flags that was given; None leaves it to the profile."""
    given = [
        name for name, flag in (("spot", spot), ("on-demand", on_demand), ("spot-first", spot_first)) if flag
    ]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other; give one")
    return given[0] if given else None


def parsed(flag: str, parse: Callable[[str], _Parsed], text: str) -> _Parsed:
    """``parse(text)``, whose UserError names the flag that ``text`` was given to."""
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"{flag}: {error.message}", hint=error.hint) from error


def in_hours(flag: str, text: str | None) -> float | None:
    """The hours that a flag was given, as 36h or 2d; None where it was not."""
    from launcher.money.amounts import parse_duration

    return parsed(flag, parse_duration, text) / 3600 if text else None


def writable(flag: str, path: Path | None) -> None:
    """Raises UserError when no file can be written at ``path``: before the work for it is done."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder", hint=f"name a file in it: {path / 'FILE'}")
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {folder}", hint=f"`mkdir -p {folder}` makes it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"{flag} {path}: it may not be written there")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """A table for people; ``empty`` is said instead when there is no row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(human(cell)) for cell in row))
    if table.row_count == 0:
        print(empty)
        return
    # Piped output is not a terminal of 80 columns: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False).print(table)


def human(value: object) -> str:
    """A value in a table: floats to five digits, tables and lists as JSON, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    return json.dumps(value, default=str) if isinstance(value, (dict, list)) else str(value)


def say(line: str) -> None:
    """A line about the launch itself; on stderr, so that stdout holds facts and the job's own lines."""
    print(line, file=sys.stderr, flush=True)


def human_bytes(count: int) -> str:
    """``1536`` is ``1.5 KiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
