"""Measure rows of the suite, keep what was found in benchmarks/results.json, and write the table into docs/performance.md.

    python -m benchmarks                          # every row, on the models it is meant for
    python -m benchmarks decode ppo               # some rows
    python -m benchmarks sft --model medium --rounds 5 --minutes 3
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import table
from benchmarks.models import NAMES
from benchmarks.results import Result, load, save
from benchmarks.rows import ROWS, Settings
from benchmarks.side_by_side import KEEP, ChairError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all when none is named")
    parser.add_argument("--model", action="append", choices=NAMES, help="instead of the models that a row is meant for; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="quiet rounds a row")
    parser.add_argument("--minutes", type=float, default=10.0, help="most time for the rounds of a row (starting and warming up come on top)")
    parser.add_argument("--bfloat16", choices=("full", "lora"), default="full", help="what the bfloat16 rows of SFT, reward model and GRPO train")
    parser.add_argument("--peers", type=Path, default=Path(os.environ.get("PEERS", KEEP / "peers")), help="the peers' virtual environment")
    parser.add_argument("--trl-ppo", type=Path, default=Path(os.environ.get("TRL_PPO", KEEP / "trl-ppo")), help="the folder of the last trl with PPO, unpacked")
    parser.add_argument("--beside", metavar="PEER", help="only this one of the peer's settings, by the name that the table has for it")
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    given = parser.parse_args()
    unknown = [row for row in given.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    python = given.peers.absolute() / "bin" / "python"
    if not python.exists():
        parser.error(f"no peers in {given.peers}: `make bench-peers` installs them, or name their virtual environment with --peers or PEERS")
    settings = Settings(str(python), str(given.trl_ppo.absolute()), given.rounds, 60 * given.minutes, given.bfloat16, given.beside)
    return _measure(given.rows or list(ROWS), given.model, settings, dry=given.dry)


def _measure(rows: list[str], models: list[str] | None, settings: Settings, *, dry: bool) -> int:
    """Every row that can be measured is; those that cannot are named at the end."""
    failed: list[str] = []
    found: list[Result] = []
    for row in rows:
        play, meant = ROWS[row]
        for model in models if models and set(meant) <= set(NAMES) - {"tiny"} else meant:
            began = time.perf_counter()
            try:
                new = play(settings, model)
            except ChairError as error:
                failed.append(f"{row} on {model}: {error}")
                print(failed[-1], file=sys.stderr)
                continue
            found += new
            if not dry:
                table.write(save(new, whole=settings.beside is None))
            print(f"\n{row}, {model}: {time.perf_counter() - began:.0f} s\n{table.render(new)}", flush=True)
    print(f"\n{len(found)} results, {len(load())} kept in all; goals not held: {[f'{r.row} {r.model} {r.variant} {r.measure} against {r.peer}' for r in found if r.held is False]}")
    for line in failed:
        print(f"NOT MEASURED: {line}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
