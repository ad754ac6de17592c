"""`truing run` and `truing demo`: whole pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from truing.cli import show
from truing.cli.progress import open_progress

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout; progress goes to stderr.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.OPTION=VALUE", help="Change one value of the recipe; may be repeated.")]
RUNS = Path("runs")


def run(recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")], set_: Set = None, runs_dir: RunsDir = RUNS, json: Json = False) -> None:
    """Run the stages of a recipe in order. Complete ones are skipped, a killed one goes on exactly where it was."""
    from truing.config import load_recipe
    from truing.pipeline import run_recipe

    resolved = load_recipe(recipe, set_ or ())
    with open_progress(machine=json) as progress:
        folder = run_recipe(resolved, runs_dir, progress)
    conclude(folder, json)


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model on made-up sentences: under two minutes, no download.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Your own preference pairs instead of the film reviews.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; by default made from what it is.")] = None,
    runs_dir: RunsDir = RUNS,
    json: Json = False,
) -> None:
    """Teach a real 135M model to write positive film reviews from human ratings, and report whether it worked."""
    from truing.demo.film import run_demo

    with open_progress(machine=json) as progress:
        folder = run_demo(quick=quick, seed=seed, data=data, name=name, runs=runs_dir, progress=progress)
    conclude(folder, json)


def conclude(folder: Path, json: bool) -> None:
    """After a run: write its report, and print the verdict."""
    from truing.observe.report import report, verdict

    page, found = report(folder), verdict(folder)
    if json:
        show.as_json({**found, "folder": str(folder), "report": str(page)})
    else:
        print(f"\n{found['verdict']}\nreport: {page}")
