"""The passes of the sources beside this file, compiled once by the system's C compiler and kept in the user's cache.

PyTorch makes a pass over memory for every elementwise step. A step's passes in one are several times as fast, so where a compiler is found
(Linux) they are used; elsewhere their callers do the same in PyTorch. ``TRUING_KERNELS=torch`` asks for that.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from truing.assets import cache_dir
from truing.errors import ConfigError

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "attention.c", "linears.c", "halves.c", "decode.c"))
SHARED = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "products.h", "layers.h"))
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
MODES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}
SETTING = "TRUING_KERNELS"
LIMIT = 120.0  # seconds for the compiler, which needs less than one
log = logging.getLogger(__name__)


def passes(x: torch.Tensor, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The passes for these states and products in a precision; None where there are none."""
    return library(dtype) if x.device.type == "cpu" else None


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The passes for products in a precision; None where there are none: another system, no compiler, or by the setting.

    Raises ConfigError for a TRUING_KERNELS that means nothing.
    """
    asked = os.environ.get(SETTING) or "compiled"
    if asked not in ("compiled", "torch"):
        raise ConfigError(f"{SETTING}={asked}; use torch for passes in PyTorch, or leave it unset for compiled ones where there is a compiler")
    if sys.platform != "linux" or dtype not in MODES or asked == "torch":
        return None
    try:
        _share_threads()
        found = _declared(_loaded(_built(dtype), dtype))
    except (OSError, ConfigError) as e:
        log.info("elementwise passes run in PyTorch (slower): %s", e)
        return None
    if not _sound(found, dtype):
        log.warning("elementwise passes run in PyTorch (slower): what this machine's compiler made of them computes something else")
        return None
    return found


def _built(dtype: torch.dtype) -> Path:
    """The library of this source for this processor, made if it is not there yet."""
    words = (*(path.read_text() for path in (*SHARED, *SOURCES)), *FLAGS, *MODES[dtype], platform.machine(), _processor())
    folder = cache_dir() / "kernels"
    folder.mkdir(exist_ok=True)
    made = folder / f"{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:20]}.so"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _compile(dtype, Path(place)).replace(made)
    return made


def _compile(dtype: torch.dtype, place: Path) -> Path:
    """By the first compiler that can. Raises what the last one did."""
    compilers = dict.fromkeys(path for name in (os.environ.get("CC") or "cc", "cc", "gcc", "clang") if (path := shutil.which(name)))
    whole, problem = place / "kernels.so", OSError("no C compiler was found; install gcc or clang")
    parts = [f"{path.stem}.o" for path in SOURCES]
    for compiler in compilers:
        try:
            for command in ([compiler, *FLAGS, *MODES[dtype], "-c", *map(str, SOURCES)], [compiler, "-shared", *parts, "-o", str(whole), "-lm"]):
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT, stdin=subprocess.DEVNULL, cwd=place)
            ctypes.CDLL(str(whole))
            return whole
        except subprocess.CalledProcessError as e:
            problem = OSError(f"{compiler}: {next((line for line in e.stderr.splitlines() if 'error' in line), f'exit status {e.returncode}')}")
        except (OSError, subprocess.SubprocessError) as e:
            problem = OSError(f"{compiler}: {e}")
    raise problem


def _loaded(made: Path, dtype: torch.dtype) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(made))
    except OSError:  # half a file, or another system's: once more
        made.unlink()
        return ctypes.CDLL(str(_built(dtype)))


def _processor() -> str:
    """What ``-march=native`` depends on."""
    found = re.search(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[0] if found else platform.processor()


def _share_threads() -> None:
    """Let the passes find PyTorch's own OpenMP library: another one would bring threads of its own, in each other's way. So none is linked."""
    ctypes.CDLL(openmp_of(Path("/proc/self/maps").read_text(errors="surrogateescape"), Path(torch.__file__).parent), mode=ctypes.RTLD_GLOBAL)


def openmp_of(maps: str, torch_folder: Path) -> str:
    """The OpenMP library among a process's mapped files: PyTorch's own where it brings one, else the first. Raises OSError when there is none."""
    found = [path for line in maps.splitlines() if re.search(r"/lib[gi]omp[^/]*\.so[^/]*$", path := line.split(maxsplit=5)[-1])]
    if not found:
        raise OSError("PyTorch runs without OpenMP")
    return next((path for path in found if path.startswith(str(torch_folder))), found[0])


def names() -> list[str]:
    """Of all passes; a precision or a processor may lack some."""
    return [name for name, _ in _functions()]


def _functions() -> list[tuple[str, str]]:
    return re.findall(r"^void (\w+)\((.*?)\)", "".join(path.read_text() for path in SOURCES), re.MULTILINE | re.DOTALL)


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """With the arguments' types, as the sources declare them."""
    kinds = {"int64_t": ctypes.c_int64, "float": ctypes.c_float}
    for name, arguments in _functions():
        words = [a.split() for a in arguments.split(",")]
        function = getattr(found, name, None)
        if function is None:  # this processor or precision has no use for it
            continue
        function.restype = None
        function.argtypes = [ctypes.c_void_p if any("*" in part for part in w) else kinds[w[0]] for w in words]
    return found


def _sound(found: ctypes.CDLL, dtype: torch.dtype) -> bool:
    """One pass on a few numbers, beside PyTorch's."""
    gates, ups = torch.linspace(-20, 20, 99).to(dtype), torch.linspace(3, -1, 99).to(dtype)
    out = torch.empty_like(gates)
    found.gate(gates.data_ptr(), ups.data_ptr(), 99, out.data_ptr(), 1, 99)
    expected = torch.nn.functional.silu(gates.float()) * ups.float()
    return bool(torch.allclose(out.float(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6))
