"""``python tests/as_ordinary_user.py UID COMMAND...``: run a command as another user who can see this Python and this checkout, wherever they live.

A folder above them that others may not enter (a root's home) is covered, in a mount namespace of the command's own, by an empty
one that shows only what is needed. Leaves with status 77 when that cannot be done.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

from truing.rewards.sandbox import launch


def closed_above(path: str) -> str:
    """The highest folder above a path, or the path itself, that others may not enter; empty when there is none."""
    for folder in (*reversed(Path(path).parents), Path(path)):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return str(folder)
    return ""


def main(user: int, command: list[str]) -> None:
    here = str(Path(__file__).resolve().parent.parent)
    needed = [os.path.realpath(p) for p in (sys.base_prefix, sys.prefix, here)]
    covers = {closed_above(p) for p in needed} - {""}
    try:
        if len(covers) > 1:
            raise OSError(f"{' and '.join(sorted(covers))} are closed to others")
        for cover in covers:
            launch.show(ctypes.CDLL(None, use_errno=True), [p for p in needed if closed_above(p)], cover)
        os.chdir("/")
        launch.drop(user)
    except OSError as error:
        print(f"cannot become an ordinary user who sees this Python: {error}", file=sys.stderr)
        sys.exit(77)
    os.chdir(here)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
