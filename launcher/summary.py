"""How facts are shown to people: the end of a launch, a dry run, a lineage tree, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from launcher import task
from launcher.launch import Outcome, open_store
from launcher.plan import Plan
from launcher.project import Project

if TYPE_CHECKING:
    from launcher.artifacts.manifest import Manifest
    from launcher.artifacts.store import Store
    from launcher.lineage.graph import Node

__all__ = ["dry", "facts", "find_artifact", "open_store", "print_tree", "progress", "show"]


def find_artifact(project: Project, uri: str) -> Manifest:
    """The version that ``uri`` names. Raises UserError or Refused, naming the nearest, when there is none."""
    from launcher.artifacts import registry
    from launcher.artifacts.uri import parse_ref
    from launcher.lineage import mlflow_view

    return registry.resolve(
        open_store(project),
        parse_ref(uri),
        lambda name, alias: mlflow_view.get_alias(project.tracking, name, alias),
    )


def dry(plan: Plan, built: task.Task) -> str:
    """A plan as YAML: comments for people above the exact task."""
    lines = [f"# {plan.name} with config {plan.config_name!r} on {plan.profile.name!r}, {plan.nodes} node(s)"]
    lines.append(f"# {plan.kind}")
    for name, item in plan.inputs.items():
        known = item.path or (item.manifest.uri if item.manifest else f"{item.ref} (not made yet)")
        lines.append(f"# input {name}: {known}")
    if plan.output:
        lines.append(f"# makes: art://{plan.output}")
    if plan.fingerprint:
        lines.append(f"# fingerprint: {plan.fingerprint[:12]}")
    return "\n".join(lines) + "\n" + task.dump(built)


def facts(outcome: Outcome) -> dict[str, Any]:
    """One stage's outcome for programs; ``seconds`` is wall time of this launch."""
    output = outcome.output
    return {
        "stage": outcome.plan.name,
        "status": outcome.status,
        "run_id": outcome.run_id,
        "seconds": round(outcome.seconds, 1),
        "output": output.uri if output else None,
        "metadata": dict(output.metadata) if output else {},
        "cost_usd": output.producer.get("cost_usd") if output else None,
    }


def show(outcomes: Sequence[Outcome], project: Project, store: Store) -> None:
    """The end of a launch: what each stage made and how well, where it came from, and where to look."""
    from launcher.cli.common import print_table
    from launcher.lineage import graph

    print()
    rows = []
    for outcome in outcomes:
        output = outcome.output
        took = f"{outcome.seconds:.0f} s" if outcome.status == "made" else outcome.status
        rows.append((outcome.plan.name, took, output.uri if output else "-", _headline(output)))
    print_table(("stage", "took", "artifact", "result"), rows, empty="")
    last = outcomes[-1].output
    if last:
        print_tree(graph.up(store, last.uri))
    print()
    print(f"run      nemo-sky runs show {outcomes[-1].run_id}")
    print(f"MLflow   mlflow ui --backend-store-uri {project.tracking}   then http://127.0.0.1:5000")


# The numbers that a person looks at first, in this order, whatever the type of the artifact.
HEADLINES = ("total_tokens", "valid_loss", "unigram_entropy", "final_loss", "step", "total_sequences")
HEADLINES_SHOWN = 4


def _headline(output: Manifest | None) -> str:
    if output is None:
        return ""
    extra = output.metadata.get("extra") or {}
    facts_of = {**extra, **output.metadata, **(output.metadata.get("scores") or {})}
    scores = sorted(output.metadata.get("scores") or (), key=lambda key: "accuracy" not in key)
    shown = [key for key in (*scores, *HEADLINES) if isinstance(facts_of.get(key), (int, float))]
    return ", ".join(f"{key} {_number(facts_of[key])}" for key in shown[:HEADLINES_SHOWN])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def print_tree(node: Node) -> None:
    """Draw a lineage tree: each artifact with the run, commit, image and cost that made it."""
    from rich.console import Console
    from rich.tree import Tree

    def label(item: Node) -> str:
        made = item.manifest.producer
        parts = [str(made.get("run_id") or "imported")]
        if sha := made.get("git_sha"):
            lacks = ", not all of them kept" if made.get("patch_lacks") else ""
            changes = f" + uncommitted changes{lacks}" if made.get("git_dirty") else ""
            parts.append(f"git {str(sha)[:8]}{changes}")
        if image := made.get("image"):
            parts.append(str(image))
        cost = made.get("cost_usd")
        parts.append("cost unknown" if cost is None else f"${cost:.2f} when published")
        return f"[bold]{item.manifest.uri}[/bold]  {', '.join(parts)}"

    def grow(branch: Tree, item: Node) -> None:
        for child in item.children:
            grow(branch.add(label(child)), child)

    tree = Tree(label(node))
    grow(tree, node)
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False).print(tree)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over bytes on stderr; gives the callback (bytes done, bytes in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(title, total=total)
        yield lambda done, whole: bar.update(row, completed=done, total=whole)
