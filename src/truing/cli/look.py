"""Commands that read: report, doctor, ckpt verify, schema."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from truing.cli import show

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, for example runs/film.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def report(run: Run, json: Json = False, open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False) -> None:
    """Rebuild report.html from the run's folder, and say whether it worked."""
    from truing.observe.report import report as write
    from truing.observe.report import verdict

    page, found = write(run), verdict(run)
    if json:
        show.as_json({**found, "report": str(page)})
    else:
        print(f"{found['verdict']}\nreport: {page}")
    if open_:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            show.say(f"warning: no browser was found; open {page} yourself")


def doctor(run: Run, json: Json = False) -> None:
    """Name what looks wrong with a run: metrics out of their healthy range, over-optimisation. Exits 1 on an error."""
    from truing.observe.doctor import doctor as examine

    found = examine(run)
    if json:
        show.as_json([asdict(f) for f in found])
    elif not found:
        print("nothing looks wrong")
    else:
        for f in found:
            print(f"{f.severity}: {f.name}" + (f" (step {f.step})" if f.step is not None else "") + f": {f.message}")
    if any(f.severity == "error" for f in found):
        raise typer.Exit(1)


Dir = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint, a checkpoints folder, a stage or a whole run.")]


def verify(folder: Dir, json: Json = False) -> None:
    """Compare every file of every checkpoint with the size and hash that were recorded. Exits 1 and names the bad file."""
    from truing.errors import CheckpointError
    from truing.learn.checkpoint import verify as check

    rows = []
    for checkpoint in checkpoints(folder):
        try:
            rows.append({"checkpoint": str(checkpoint), "ok": True, "files": len(check(checkpoint)["files"]), "problem": None})
        except CheckpointError as problem:
            rows.append({"checkpoint": str(checkpoint), "ok": False, "files": None, "problem": str(problem)})
    if json:
        show.as_json(rows)
    else:
        for row in rows:
            if row["ok"]:
                print(f"ok    {row['checkpoint']} ({row['files']} files)")
            else:
                show.say(f"error: {row['problem']}")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in or below ``folder``; itself when it is one. Raises CheckpointError when there is none."""
    from truing.errors import CheckpointError

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if folder.name.startswith("step-") or (folder / "MANIFEST.json").exists():
        return [folder]
    found = sorted(p for p in folder.rglob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit())
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint (a folder named step-000120, say); give a run, a stage, or a checkpoint")
    return found


def schema() -> None:
    """Print the JSON schema of a recipe, for editors and other programs."""
    from truing.config import Recipe

    show.as_json(Recipe.model_json_schema())
