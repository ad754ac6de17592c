"""The program ``truing``, which ``python -m truing`` is too: settle where memory comes from, then read the command line."""

from __future__ import annotations

import gc
import sys

from truing import allocator
from truing.errors import ConfigError

COMPUTE = {"demo", "run", "plan", "sft", "reward", "ppo", "grpo", "lab", "eval", "chat"}  # commands that make tensors


def main() -> None:
    if COMPUTE & set(sys.argv[1:2]):
        try:
            allocator.settle()
        except ConfigError as problem:
            sys.exit(f"error: {problem}")
    gc.disable()  # nothing that is imported is garbage: looking for some takes a tenth of the time in which --help answers
    from truing import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
