"""`truing data check`: what a file holds, before anything is trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from truing.cli import show


def check(
    file: Annotated[str, typer.Argument(help="JSONL, JSON, CSV or Parquet, or a hub id.")],
    tokenizer: Annotated[str | None, typer.Option(metavar="MODEL", help="Count and show tokens as this model does.")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Most tokens of prompt + completion; needs --tokenizer.  \\[default: 1024]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what the format is, how long the rows are, and every problem with its file and line. Exits 1 when there is one."""
    if max_length is not None and tokenizer is None:
        raise typer.BadParameter("counts tokens, so it needs --tokenizer MODEL", param_hint="--max-length")
    from truing.data.check import check as look
    from truing.data.check import rendered
    from truing.models.roles import tokenizer_of

    found = look(file, tokenizer_of(tokenizer) if tokenizer else None, max_length or 1024)
    if json:
        show.as_json(found.to_dict())
    else:
        from rich.console import Console

        Console().print(rendered(found), soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)
