"""`truing lab`: the classic experiments. What is expected is printed before anything runs, what was measured after it.

Exit code 0 says that the lab ran. An expectation that did not hold is a result like any other: it is said in the last
lines and as ``held`` in the JSON, and is no error of the program.
"""

from __future__ import annotations

import math
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from truing.cli import show
from truing.cli.env import version

if TYPE_CHECKING:
    from rich.console import Console

    from truing.config import Frozen
    from truing.labs.lab import Findings, Lab, Table

FOLDER = Path("runs") / "labs"
PACKAGES = ("truing", "numpy", "torch", "gymnasium", "matplotlib")


class LabCommand(TyperCommand):
    """``truing lab gae --help`` ends with what gae's own options are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["truing.lab"] = list(args)  # --help is answered before any argument is read
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        words = ctx.meta["truing.lab"]
        name = next((word for word in words if word in _labs()), words[0])  # else the first, which is then said to be no lab
        if not name.startswith("-") and name != "list":
            _print_options(name, _found(name).Options)


Name = Annotated[str, typer.Argument(metavar="NAME", help="A lab, or `list`.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Change one of the lab's options; may be repeated.")]
Seeds = Annotated[int | None, typer.Option(min=1, metavar="N", help="How many seeds to run; every lab has its own default.")]
Seed = Annotated[int | None, typer.Option(min=0, metavar="FIRST", help="The first seed; the others follow it.  \\[default: 0]")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the figures and result.json.  \\[default: runs/labs/NAME]")]
ListOptions = Annotated[bool, typer.Option("--options", help="List the lab's options, and run nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")]


def lab(
    name: Name = "list", set_: Set = None, seeds: Seeds = None, seed: Seed = None, out: Out = None, options: ListOptions = False, json: Json = False
) -> None:
    """Run a classic experiment: its expectation, what was measured, whether it held, and figures. `truing lab list` names them."""
    if name == "list":
        if set_ or options or any(given is not None for given in (seeds, seed, out)):
            raise typer.BadParameter("runs nothing, so it takes no option but --json", param_hint="list")
        _list(json)
        return
    found = _found(name)
    if options:
        _print_options(name, found.Options, json)
        return
    from truing.config import make_options

    chosen = make_options(found.Options, set_ or (), f"truing lab {name}")
    if found.SEEDS == 0 and (seeds is not None or seed is not None):
        show.say(f"note: {name} draws nothing at random, so --seeds and --seed change nothing")
    first = seed or 0
    numbers = list(range(first, first + (seeds or found.SEEDS))) if found.SEEDS else []
    folder = out or FOLDER / name
    expectation = found.expectation(chosen)  # may refuse the options: before a folder is made
    _prepare(folder)
    console = _console()
    if not json:
        console.print(f"Expected: {expectation}\n")
    started = perf_counter()
    with _patience(name):
        findings = found.run(chosen, numbers)
    document = {
        "name": name, "options": chosen.model_dump(), "seeds": numbers, "expectation": expectation, **findings.document(),
        "figures": [str(folder / f"{figure}.png") for figure in findings.figures], "seconds": round(perf_counter() - started, 3),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }  # fmt: skip
    _keep(folder, findings, document)
    if json:
        show.as_json(document)
    else:
        _print_findings(console, findings, folder)


def _found(name: str) -> Lab:
    from truing.errors import ConfigError
    from truing.labs.lab import find

    try:
        return find(name)
    except ConfigError as problem:  # a name that does not exist is a command line that cannot be meant
        raise typer.BadParameter(str(problem), param_hint="NAME") from problem


def _labs() -> dict[str, str]:
    from truing.labs.lab import LABS

    return LABS


def _list(json: bool) -> None:
    if json:
        show.as_json([{"name": name, "shows": shows} for name, shows in _labs().items()])
    else:
        show.table(_labs().items())
        print("\ntruing lab NAME runs one; truing lab NAME --options lists what --set may change")


# -- options ------------------------------------------------------------------------------------------------------------


def described(model: type[Frozen]) -> list[dict[str, Any]]:
    """Each option with its default, the values it may take, and what it is."""
    schema = model.model_json_schema()
    rows = []
    for name, field in schema.get("properties", {}).items():
        rows.append({"option": name, "default": field.get("default"), "values": _values(field), "description": field.get("description", "")})
    return rows


def _values(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_values(part) for part in field["anyOf"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "null", "string": "text", "array": "list"}.get(field.get("type", ""), "")
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([kind, *(f"{word} {field[key]:g}" for key, word in bounds.items() if key in field)])


def _print_options(name: str, model: type[Frozen], json: bool = False) -> None:
    rows = described(model)
    if json:
        show.as_json(rows)
    elif not rows:
        print(f"{name} has no options")
    else:
        from rich.table import Table as RichTable

        table = RichTable("option", "default", "values", "what it is", title=f"Options of {name} (--set option=value)", **_plain_look())
        for row in rows:
            table.add_row(row["option"], _literal(row["default"]), row["values"], row["description"])
        _console().print(table)


def _literal(value: Any) -> str:
    """A value as one writes it after ``--set option=``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_literal, value))}]" if isinstance(value, list) else str(value)


# -- figures and result.json --------------------------------------------------------------------------------------------


def _prepare(folder: Path) -> None:
    """Make the folder and try a file in it: better before a long lab than after it."""
    from truing.errors import TruingError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as problem:
        reason = "a file stands where a folder is needed" if isinstance(problem, FileExistsError | NotADirectoryError) else problem.strerror or str(problem)
        raise TruingError(f"{folder}: cannot write figures there: {reason}; choose another folder with --out") from problem


def _keep(folder: Path, findings: Findings, document: dict[str, Any]) -> None:
    """The figures, then the result that names them: a result.json that is there is complete."""
    import orjson

    from truing.disk import write_atomic
    from truing.errors import CheckpointError, TruingError
    from truing.labs.canvas import png
    from truing.observe.events import plain

    try:
        for name, figure in findings.figures.items():
            write_atomic(folder / f"{name}.png", png(figure))
        write_atomic(folder / "result.json", orjson.dumps(plain(document), option=orjson.OPT_INDENT_2) + b"\n")
    except CheckpointError as problem:  # its remedy speaks of checkpoints
        cause = problem.__cause__
        raise TruingError(f"{folder}: cannot write figures there: {getattr(cause, 'strerror', None) or cause}; choose another folder with --out") from problem


# -- printing -----------------------------------------------------------------------------------------------------------


def _console() -> Console:
    """Numbers and brackets are printed as they are; into a file or a pipe, tables keep their width."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


def _plain_look() -> dict[str, Any]:
    from rich import box

    return {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD, "pad_edge": False}


@contextmanager
def _patience(name: str) -> Iterator[None]:
    """A clock on stderr while the lab runs, when a person watches."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as progress:
        progress.add_task(f"running {name}", total=None)
        yield


def number(value: float | int) -> str:
    """A number to four significant digits, without an exponent as long as it can be read without.

    >>> [number(x) for x in (0.1, 2 / 3, 1234.56, 25000.0, 3.2e-05)]
    ['0.1', '0.6667', '1235', '25,000', '3.2e-05']
    """
    if not math.isfinite(value) or (abs(value) < 1000 and value != int(value)):
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"  # a year needs no comma


def cell(value: Any) -> str:
    """A cell of a table. An interval has as many decimals as its width gives meaning to.

    >>> from truing.maths.stats import Interval
    >>> cell(Interval(1.4001, 1.3807, 1.4193)), cell(None), cell(2000)
    ('1.40 [1.38, 1.42]', '', '2000')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        half = (value[2] - value[1]) / 2
        if not (math.isfinite(half) and half > 0):
            return "{} [{}, {}]".format(*map(number, value))
        decimals = min(8, max(0, math.ceil(-math.log10(half / 1.5))))
        return "{:,.{d}f} [{:,.{d}f}, {:,.{d}f}]".format(*(round(v, decimals) + 0.0 for v in value), d=decimals)  # + 0.0: no "-0.00"
    return str(value) if isinstance(value, bool) else number(value)


def rendered(table: Table) -> Any:
    """A lab's table for rich: columns of numbers to the right, of words to the left."""
    from rich.table import Table as RichTable

    made = RichTable(title=table.title, **_plain_look())
    for i, column in enumerate(table.columns):
        words = any(isinstance(row[i], str) for row in table.rows)
        made.add_column(column, justify="left" if words else "right")
    for row in table.rows:
        made.add_row(*map(cell, row))
    return made


def _print_findings(console: Console, findings: Findings, folder: Path) -> None:
    for table in findings.tables:
        console.print(rendered(table))
    yes, no = _marks()
    for check in findings.checks:
        console.print(f"{yes if check.held else no} {check.claim}\n    {check.measured}", style=None if check.held else "red", soft_wrap=True)
    failed = [check.claim for check in findings.checks if not check.held]
    console.print(f"\n{'did not hold: ' + '; '.join(failed) if failed else 'held'}", style="bold", soft_wrap=True)
    for figure in findings.figures:
        console.print(f"figure: {folder / figure}.png", soft_wrap=True)


def _marks() -> Sequence[str]:
    try:
        "\u2713\u2717".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "yes", "NO "
    return "\u2713", "\u2717"
