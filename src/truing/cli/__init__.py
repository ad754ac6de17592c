"""The command line: thin. Each command parses, calls one function, and prints; whatever is heavy is imported inside it.

Exit codes: 0 done; 1 an error, said in one line; 2 a command line that cannot be meant; 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from truing.cli import chat, data, env, lab, look, plan, run, show, stages, verify

CONTEXT = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="truing", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, context_settings=CONTEXT, rich_markup_mode="rich",
    help="Align language models, and tell the truth about whether it worked.",
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        from truing import __version__

        print(f"truing {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


TRAIN, LEARN, LOOK, CHECK = "Train", "Learn", "Look at a run", "Check and describe"
app.command("demo", rich_help_panel=TRAIN)(run.demo)
app.command("run", rich_help_panel=TRAIN)(run.run)
app.command("plan", rich_help_panel=TRAIN)(plan.plan)
for method in ("sft", "reward", "ppo", "grpo"):
    app.command(method, rich_help_panel=TRAIN)(stages.command(method))
app.command("lab", cls=lab.LabCommand, rich_help_panel=LEARN)(lab.lab)
app.command("report", rich_help_panel=LOOK)(look.report)
app.command("doctor", rich_help_panel=LOOK)(look.doctor)
app.command("eval", rich_help_panel=LOOK)(stages.evaluate)
app.command("chat", rich_help_panel=LOOK)(chat.chat)
app.command("verify", rich_help_panel=CHECK)(verify.verify)
data_app = typer.Typer(no_args_is_help=True, context_settings=CONTEXT, help="Look at data before training on it.")
data_app.command("check")(data.check)
app.add_typer(data_app, name="data", rich_help_panel=CHECK)
ckpt_app = typer.Typer(no_args_is_help=True, context_settings=CONTEXT, help="Look at checkpoints.")
ckpt_app.command("verify")(look.verify)
app.add_typer(ckpt_app, name="ckpt", rich_help_panel=CHECK)
app.command("schema", rich_help_panel=CHECK)(look.schema)
app.command("env", rich_help_panel=CHECK)(env.env)

# `truing data` has one command so far; without a callback typer would make it `truing data FILE`.
for group in (data_app, ckpt_app):
    group.callback()(lambda: None)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``truing``. Always ends in SystemExit."""
    show.set_up_streams()
    with contextlib.suppress(OSError):  # a person's own module:function lies beside the data; last, so that nothing there shadows a library
        sys.path.append(os.getcwd())
    code: Any = 0
    try:
        app(args=list(argv) if argv is not None else None, prog_name="truing")
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        code = 130
    except Exception as problem:
        if show.debugging():
            raise
        code = show.error(problem)
    sys.exit(_flushed(code))


def _flushed(code: Any) -> Any:
    """Write out what is left. When the reader of stdout has gone (``truing ... | head``), that is no error and no noise."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
    return code
