"""How a fork server is shut in: tier A with bubblewrap, tier B without. ``sandbox.py`` tries them before it believes them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from truing.errors import ConfigError

NOBODY = 65534
INSTALL = "install it (Debian and Ubuntu: apt install bubblewrap)"


@dataclass(frozen=True)
class Tier:
    """A way to start a fork server.

    Attributes:
        name: A or B.
        says: what it is, for people.
        command: what is run; the number of the channel's descriptor is put at its end.
        user: who runs it; None as who runs this.
        sealed: whether it is started without the chance of new privileges (bubblewrap sees to that itself).
        shown, cover: a folder that the user must see, and what lies above it that he may not enter; empty when he may.
    """

    name: str
    says: str
    command: tuple[str, ...]
    user: int | None
    sealed: bool
    shown: str = ""
    cover: str = ""


@dataclass(frozen=True)
class Interpreter:
    """The Python in use, without its virtual environment."""

    executable: str
    base: str
    library: str

    @classmethod
    def found(cls) -> Interpreter:
        executable = getattr(sys, "_base_executable", None) or sys.executable
        return cls(os.path.realpath(executable), os.path.realpath(sys.base_prefix), os.path.realpath(os.path.dirname(os.__file__)))

    def command(self) -> tuple[str, ...]:
        return (self.executable, "-I", "-S", "-B", "-X", "utf8", "-")

    def closed_to_others(self) -> str:
        """The highest folder above this Python that other users may not enter; empty when there is none."""
        for path in (self.executable, self.library):
            for folder in reversed(Path(path).parents):
                if not folder.stat().st_mode & stat.S_IXOTH:
                    return str(folder)
        return ""


def tier(name: str) -> Tier:
    """Tier A or B on this machine. Raises ConfigError when it cannot be had, with the reason."""
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"there is no sandbox on {sys.platform}; it needs Linux")
    python = Interpreter.found()
    root = os.geteuid() == 0
    cover = python.closed_to_others() if root else ""
    who = f"user {NOBODY if root else os.geteuid()}"
    user, shown = (NOBODY if root else None), (python.base if cover else "")
    if name == "B":
        return Tier("B", f"no namespaces; Landlock, seccomp and limits as {who}", python.command(), user, True, shown, cover)
    program = shutil.which("bwrap")
    if program is None:
        raise ConfigError(f"bubblewrap is not there; {INSTALL}")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()
    command = (program, *_namespaces(), *_binds(python), "--", *python.command())
    return Tier("A", f"{version}, Landlock, seccomp and limits as {who}", command, user, False, shown, cover)


def _namespaces() -> tuple[str, ...]:
    return ("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL")


def _binds(python: Interpreter) -> list[str]:
    """What can be seen inside: the system's libraries, this Python without installed packages, and null. Nothing can be written."""
    args = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--dev-bind", "/dev/null", "/dev/null"]
    for path in sorted(Path("/").glob("lib*")):
        args += ["--symlink", os.readlink(path), str(path)] if path.is_symlink() else ["--ro-bind", str(path), str(path)]
    if not python.base.startswith("/usr"):
        for folder in (f"{python.base}/lib", f"{python.base}/lib64"):
            args += ["--ro-bind", folder, folder] if os.path.isdir(folder) else []
        args += ["--ro-bind", python.executable, python.executable]
    packages = (f"{python.library}/site-packages", f"{python.library}/dist-packages", "/usr/lib/python3/dist-packages")
    for folder in filter(os.path.isdir, packages):
        args += ["--size", "65536", "--tmpfs", folder, "--remount-ro", folder]
    return [*args, "--size", "1048576", "--tmpfs", "/tmp", "--remount-ro", "/tmp", "--remount-ro", "/", "--chdir", "/"]
