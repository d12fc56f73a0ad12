"""``nemo-sky recipes``: which stages there are and what each needs."""

from __future__ import annotations

import typer

from launcher.cli.common import (
    Context,
    JsonOption,
    ProjectOption,
    StageArgument,
    print_json,
    print_table,
    say,
    stage_name,
)

app = typer.Typer(help="List and show the stages that can be launched.", no_args_is_help=True)


@app.command("list")
def list_(context: typer.Context, project: ProjectOption = None, json: JsonOption = False) -> None:
    """List every stage, in the order in which a family's stages run."""
    from launcher import inputs, runspec

    known: Context = context.obj
    known.no_script_args()
    folders = known.project(project).recipes
    specs, problems = runspec.discover(folders)
    families = sorted({spec.family for spec in specs})
    ordered = [s for family in families for s in inputs.order([s for s in specs if s.family == family])]
    for problem in problems:
        say(f"{problem.file}:{problem.line}: {problem.message}")
    if json:
        print_json([runspec.facts(spec) for spec in ordered])
        return
    rows = [
        (
            spec.family,
            spec.stage,
            spec.run.launch,
            f"{spec.resources.nodes} x {spec.resources.gpus_per_node}",
            ", ".join(spec.sky.inputs.values()) or "-",
            spec.sky.output.name if spec.sky.output else "-",
        )
        for spec in ordered
    ]
    columns = ("family", "stage", "launch", "nodes x GPUs", "from", "makes")
    where = ", ".join(map(str, folders))
    print_table(columns, rows, empty=f"no recipes: there is no script with a [tool.runspec] block in {where}")


@app.command("show")
def show(
    context: typer.Context, stage: StageArgument, project: ProjectOption = None, json: JsonOption = False
) -> None:
    """Show the runspec of FAMILY STAGE."""
    from launcher import runspec
    from launcher.config import files

    known: Context = context.obj
    known.no_script_args()
    name = stage_name(stage)
    spec = runspec.find(known.project(project).recipes, f"{name.family}/{name.stage}")
    facts = runspec.facts(spec)
    if json:
        print_json(facts)
        return
    configs = [path.stem for path in files.configs(spec.config_dir)]
    rows = [(key, value) for key, value in facts.items() if value not in (None, "", [], {})]
    print_table(("field", "value"), [*rows, ("configs", ", ".join(configs))], empty="")
