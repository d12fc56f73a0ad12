"""The ``nemo-sky`` command and the one place where errors become messages and exit codes.

Exit codes: 0 done; 1 a run failed; 2 the request, a recipe or a config is wrong; 3 the world is not
ready (absent artifact, unreachable store or tracker); 4 ``check`` or ``render --check`` found something;
5 a run stopped at its budget; 130 Ctrl-C.
"""

from __future__ import annotations

import atexit
import gc
import sys

import typer

from launcher.cli import (
    artifacts,
    check,
    config,
    cost,
    doctor,
    launch,
    lineage,
    plan,
    plugin,
    recipes,
    render,
    runs,
    simulate,
    sweep,
    version,
)
from launcher.cli.common import Context, ProjectOption, RecipesOption
from launcher.errors import BudgetReached, DeadlineReached, UserError

app = typer.Typer(
    name="nemo-sky",
    help="From a recipe to a trained, tracked model in one command: on a laptop, any cloud, or Slurm.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.command("launch")(launch.launch)
app.command("plan")(plan.plan)
app.command("sweep")(sweep.sweep)
app.command("render")(render.render)
app.command("check")(check.check)
app.command("doctor")(doctor.doctor)
app.add_typer(config.app, name="config")
app.add_typer(recipes.app, name="recipes")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(lineage.app, name="lineage")
app.add_typer(runs.app, name="runs")
app.add_typer(plugin.app, name="plugin")
app.command("queue")(runs.queue)
app.command("down")(runs.down)
app.command("cost")(cost.cost)
app.command("simulate")(simulate.simulate)
app.command("version")(version.version)


@app.callback()
def root(context: typer.Context, project: ProjectOption = None, recipes_dir: RecipesOption = None) -> None:
    """From a recipe to a trained, tracked model in one command: on a laptop, any cloud, or Slurm."""
    found: Context = context.obj
    found.project_dir = project
    found.recipes_dir = recipes_dir


def main(argv: list[str] | None = None) -> None:
    """Run the command line; never lets a user's mistake become a traceback."""
    atexit.register(gc.freeze)  # else Python walks all of MLflow and SkyPilot once more as it ends: a second
    words = list(sys.argv[1:] if argv is None else argv)
    # click would mix what follows `--` with the stage and its overrides; it belongs to the script alone.
    cut = words.index("--") if "--" in words else len(words)
    context = Context(argv=["nemo-sky", *words], script_args=tuple(words[cut + 1 :]))
    try:
        app(args=words[:cut], obj=context, prog_name="nemo-sky")
    except UserError as error:
        word = "stopped" if isinstance(error, (BudgetReached, DeadlineReached)) else "error"
        print(f"{word}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `nemo-sky runs list | head`
        sys.stderr.close()
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
