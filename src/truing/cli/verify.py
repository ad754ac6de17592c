"""`truing verify`: the verifiers prove themselves on a file's own answers, before anything is trained on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from truing.cli import show

if TYPE_CHECKING:
    from truing.rewards.selfcheck import Proof

SHOWN = 20


def verify(
    data: Annotated[str, typer.Argument(help="Prompts with their answers: a file, a hub id, or tasks like 'reasoning-gym:chain_sum(size=100)'.")],
    by: Annotated[str | None, typer.Option(metavar="NAME", help="The verifier of every row; without it, the column verifier.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Check the first rows only.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check that each gold answer earns 1 and that answers made to cheat do not. Exits 1 when one disagrees."""
    from truing.data.formats import load
    from truing.rewards.selfcheck import prove

    prompts = load(data, "prompts").records[:limit]
    proof = prove(prompts, by)  # type: ignore[arg-type]
    if json:
        show.as_json({"data": data, **proof.to_dict()})
    else:
        _print(proof)
    if not proof.ok:
        raise typer.Exit(1)


def _print(proof: Proof) -> None:
    head = ("verifier", "rows", "gold earned 1", "no gold", "wrong earned 1", "statuses", "ms a check")
    rows = [
        (name, t.rows, f"{t.gold_earned} of {t.gold}", t.without, f"{t.wrong_earned} of {t.wrong}", ", ".join(f"{n} {s}" for s, n in sorted(t.statuses.items())), f"{t.milliseconds:.2f}")
        for name, t in proof.tallies.items()
    ]
    show.table([head, *rows])
    found = proof.disagreements
    for disagreement in found[:SHOWN]:
        print(disagreement)
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more; --json lists them all")
    print("no disagreements" if not found else f"{len(found)} disagreements")
