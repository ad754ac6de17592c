"""The system calls that code under test may make, as a filter program of the kernel's (classic BPF), assembled here from the list below.

It is a list of what is allowed: computing, memory, its own descriptors, reading files, its own clock and signals' handlers. All
else answers EPERM: fork, exec, threads, sockets of every family, signals to anyone, ptrace, io_uring, mount, chroot, namespaces,
other processes' memory and limits, keys, bpf, perf, setting clocks, shared memory that outlives a process, and what does not exist yet.
Three calls are looked into. ``fcntl`` may copy descriptors and set their flags, but not name who is to be signalled (F_SETOWN with
F_SETSIG is a kill by another name). ``prlimit64`` may read its own limits. ``ioctl`` says ENOTTY to all but close-on-exec.
``clone3`` answers ENOSYS, on which the C library falls back to ``clone``, which is refused.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence

from truing.errors import ConfigError

_NAMES = (
    "read write readv writev pread64 pwrite64 close lseek dup dup2 dup3 pipe pipe2 close_range open openat stat fstat lstat newfstatat statx access faccessat faccessat2 "
    "readlink readlinkat getcwd getdents64 chdir poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait mmap munmap mprotect mremap madvise brk membarrier "
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause alarm getitimer setitimer nanosleep "
    "clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage getrlimit futex set_robust_list set_tid_address rseq sched_yield sched_getaffinity getcpu "
    "arch_prctl getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getgroups getresuid getresgid uname sysinfo umask getrandom exit exit_group"
).split()  # fmt: skip
_X86_64 = (
    "0 1 19 20 17 18 3 8 32 33 292 22 293 436 2 257 4 5 6 262 332 21 269 439 "
    "89 267 79 217 80 7 271 23 270 291 233 232 281 9 11 10 25 28 12 324 "
    "13 14 15 127 130 128 131 219 34 37 36 38 35 "
    "230 228 229 96 201 100 98 97 202 273 218 334 24 204 309 "
    "158 39 186 110 111 121 124 102 107 104 108 115 118 120 63 99 95 318 60 231"
)
_AARCH64 = (  # - where the architecture has no such call
    "63 64 65 66 67 68 57 62 23 - 24 - 59 436 - 56 - 80 - 79 291 - 48 439 "
    "- 78 17 61 49 - 73 - 72 20 21 - 22 222 215 226 216 233 214 283 "
    "134 135 139 136 133 137 132 128 - - 102 103 101 "
    "115 113 114 169 - 153 165 163 98 99 96 293 124 123 168 "
    "- 172 178 173 - 155 156 174 175 176 177 158 148 150 160 179 166 278 93 94"
)
# The kernel's name of an architecture, and the numbers of the calls above and of those that are looked into.
ARCHITECTURES: dict[str, tuple[int, str, dict[str, int]]] = {
    "x86_64": (0xC000003E, _X86_64, {"fcntl": 72, "prlimit64": 302, "ioctl": 16, "clone3": 435}),
    "aarch64": (0xC00000B7, _AARCH64, {"fcntl": 25, "prlimit64": 261, "ioctl": 29, "clone3": 435}),
}

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of a 32-bit word; jump if accumulator == k; >= k
_NUMBER, _ARCH = 0, 4  # where the call's number and the architecture stand in struct seccomp_data
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5450, 0x5451)  # FIONCLEX, FIOCLEX

Code = list[tuple[int, int, int, int]]  # operation, jump if true, jump if false, k


def program(machine: str | None = None) -> bytes:
    """The filter as the kernel takes it: 8 bytes an instruction.

    Args:
        machine: as ``platform.machine()`` names it; None means this one.

    Raises:
        ConfigError: for an architecture whose call numbers are not known here.
    """
    machine = platform.machine() if machine is None else machine
    if machine not in ARCHITECTURES:
        raise ConfigError(f"the system calls of {machine!r} are not known to the sandbox; it knows {', '.join(ARCHITECTURES)}")
    arch, _, special = ARCHITECTURES[machine]
    answers: list[tuple[int, Code]] = [(number, _give(_ALLOW)) for number in allowed(machine).values()]
    answers += [
        (special["fcntl"], _one_of(1, _FCNTL, errno.EPERM)),
        (special["ioctl"], _one_of(1, _IOCTL, errno.ENOTTY)),
        (special["prlimit64"], [*_zero(0, 0), *_zero(2, 0), *_zero(2, 4), *_give(_ALLOW)]),
        (special["clone3"], _give(_ERRNO | errno.ENOSYS)),
    ]
    code: Code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), *_give(_KILL), (_LOAD, 0, 0, _NUMBER)]
    code += _search(_ranges(answers))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def allowed(machine: str) -> dict[str, int]:
    """Number of each call that is allowed whatever its arguments."""
    return {name: int(number) for name, number in zip(_NAMES, ARCHITECTURES[machine][1].split(), strict=True) if number != "-"}


def run(code: bytes, number: int, args: Sequence[int] = (), arch: int = 0xC000003E) -> int:
    """What the kernel would answer to a call: the filter interpreted, for tests and for reading it."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    at, held = 0, 0
    while True:
        operation, yes, no, k = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if operation == _RETURN:
            return k
        if operation == _LOAD:
            held = struct.unpack_from("=I", data, k)[0]
        else:
            at += yes if (held == k if operation == _EQUAL else held >= k) else no


def _give(answer: int) -> Code:
    return [(_RETURN, 0, 0, answer)]


def _argument(index: int, upper: int) -> tuple[int, int, int, int]:
    """Load half of an argument: bytes 0-3 of it, or 4-7 (both architectures are little-endian)."""
    return (_LOAD, 0, 0, 16 + 8 * index + upper)


def _one_of(index: int, values: Sequence[int], error: int) -> Code:
    """Allow when the argument's lower half, all the kernel looks at for a command, is one of these."""
    jumps = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index, 0), *jumps, *_give(_ERRNO | error), *_give(_ALLOW)]


def _zero(index: int, upper: int) -> Code:
    """Refuse unless half of the argument is 0."""
    return [_argument(index, upper), (_EQUAL, 1, 0, 0), *_give(_ERRNO | errno.EPERM)]


def _ranges(answers: list[tuple[int, Code]]) -> list[tuple[int, Code]]:
    """(first number, answer) of each stretch of equal answers, from 0 up without a hole; what is not named is EPERM."""
    refused = _give(_ERRNO | errno.EPERM)
    known = dict(answers)
    found: list[tuple[int, Code]] = []
    for number in range(max(known) + 2):
        answer = known.get(number, refused)
        if not found or found[-1][1] != answer:
            found.append((number, answer))
    return found


def _search(ranges: list[tuple[int, Code]]) -> Code:
    """Find the stretch of a number by halving: the kernel walks some seven jumps a call, and a filter is quickly installed."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *above]  # a jump reaches 255 instructions; packing it would fail beyond
