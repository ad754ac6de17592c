"""`truing run` and `truing demo`: whole pipelines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from truing.cli import show
from truing.cli.progress import open_progress
from truing.errors import ConfigError

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout; progress goes to stderr.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.OPTION=VALUE", help="Change one value of the recipe; may be repeated.")]
RUNS = Path("runs")


class Demo(StrEnum):
    """What `truing demo NAME` runs."""

    FILM = "film"
    VERBOSE_BOT = "verbose-bot"


def run(recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")], set_: Set = None, runs_dir: RunsDir = RUNS, json: Json = False) -> None:
    """Run the stages of a recipe in order. Complete ones are skipped, a killed one goes on exactly where it was."""
    from truing.config import load_recipe
    from truing.pipeline import run_recipe

    resolved = load_recipe(recipe, set_ or ())
    with open_progress(machine=json) as progress:
        folder = run_recipe(resolved, runs_dir, progress)
    conclude(folder, json)


def demo(
    which: Annotated[Demo, typer.Argument(metavar="NAME", help="film: positive film reviews from human ratings. verbose-bot: a reward model gamed, and the same mended.")] = Demo.FILM,
    quick: Annotated[bool, typer.Option("--quick", help="film on a tiny model and made-up sentences: under two minutes, no download.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all randomness.")] = 0,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Your own preference pairs instead of the film reviews.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; by default made from what it is.")] = None,
    runs_dir: RunsDir = RUNS,
    json: Json = False,
) -> None:
    """Teach a real 135M model to write positive film reviews from human ratings, and report whether it worked; or run another story, by NAME."""
    with open_progress(machine=json) as progress:
        if which is Demo.VERBOSE_BOT:
            _refuse_film_options(quick, data)
            from truing.demo.verbose import run_verbose_bot

            folder = run_verbose_bot(seed=seed, name=name, runs=runs_dir, progress=progress)
        else:
            from truing.demo.film import run_demo

            folder = run_demo(quick=quick, seed=seed, data=data, name=name, runs=runs_dir, progress=progress)
    conclude(folder, json)


def _refuse_film_options(quick: bool, data: str | None) -> None:
    given = [f"--data {data}"] * (data is not None) + ["--quick"] * quick
    if given:
        raise ConfigError(f"{given[0]}: is of the film demo; verbose-bot makes its own data and takes a few minutes. Leave it out, or run `truing demo {given[0]}`")


def conclude(folder: Path, json: bool) -> None:
    """After a run: write its report, and print the verdict."""
    from truing.observe.report import report, verdict

    page, found = report(folder), verdict(folder)
    if json:
        show.as_json({**found, "folder": str(folder), "report": str(page)})
    else:
        print(f"\n{found['verdict']}\nreport: {page}")
