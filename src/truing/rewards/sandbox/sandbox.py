"""Running a model's code for a reward: many short runs, each in a process of its own, in fork servers that are shut in.

Expected answers never come here. A job is code and an input; its outcome is a value, or what went wrong and whose fault that is.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from truing.errors import ConfigError
from truing.rewards.sandbox import server, values
from truing.rewards.sandbox.jobs import Job, Limits, Outcome, Ran
from truing.rewards.sandbox.proof import prove
from truing.rewards.sandbox.seccomp import program
from truing.rewards.sandbox.tiers import Tier, tier
from truing.rewards.sandbox.worker import Lost, Worker

TIER = "TRUING_SANDBOX"  # the environment's variable that names the tier
AHEAD = 2  # jobs that a fork server has before it, so that it never waits for the next


class Sandbox:
    """Fork servers that are shut in, fed side by side.

    Args:
        tier_name: "A" or "B"; None takes the environment's TRUING_SANDBOX, else the first that passes its self-test.
        workers: fork servers; 0 means one a processor.
        limits: of each run.
        patience: seconds past the clock's limit after which a fork server that has not answered is given up.
        retries: how often a job is tried again whose fork server died or hung.

    Raises:
        ConfigError: no tier works here, and why.
    """

    def __init__(self, tier_name: str | None = None, workers: int = 0, limits: Limits | None = None, patience: float = 10.0, retries: int = 2) -> None:
        self.limits = limits or Limits()
        if not (0 < self.limits.seconds <= self.limits.wall < 3600 and self.limits.memory >= 64 << 20):
            raise ConfigError(f"{self.limits} cannot be; give a run some seconds, no fewer on the clock, and 64 MB or more")
        self.patience, self.retries = patience, retries
        self.count = workers or len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        self.groups = 0  # numbers of groups that batches have used
        self.setup: dict[str, Any] = {
            "filter": program().hex(), "seconds": self.limits.seconds, "wall": self.limits.wall, "memory": self.limits.memory, "answer": self.limits.answer,
        }  # fmt: skip
        self.refused: dict[str, str] = {}
        self.tier, self.proof = self._choose(tier_name or os.environ.get(TIER) or None)

    def _choose(self, wanted: str | None) -> tuple[Tier, list[str]]:
        if wanted not in (None, "A", "B"):
            raise ConfigError(f"there is no sandbox tier {wanted!r}; {TIER} and tier_name take A or B")
        for name in [wanted] if wanted else ["A", "B"]:
            try:
                self.tier = tier(name)
                return self.tier, prove(self.run, self.limits)
            except (ConfigError, OSError) as error:
                self.close()
                self.refused[name] = str(error)
        why = "; ".join(f"tier {name}: {reason}" for name, reason in self.refused.items())
        raise ConfigError(f"a model's code cannot be run safely here, so it is not run at all ({why})")

    def describe(self) -> str:
        """The tier and its limits, for a run's header and its report."""
        abi = self._workers[0].tells["landlock"] if self._workers else "?"
        instead = "".join(f"; tier {name} was refused: {reason}" for name, reason in self.refused.items())
        limits = f"{self.limits.seconds:g} s ({self.limits.wall:g} s on the clock) and {self.limits.memory >> 20} MB a run"
        return f"sandbox tier {self.tier.name} ({self.tier.says}; Landlock ABI {abi}), {self.count} fork servers, {limits}; self-test: {len(self.proof)} attempts repelled{instead}"

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """The outcome of each job, in order."""
        with self._lock:
            if os.getpid() != self._owner:  # a fork of the process that opened it: the fork servers are the other's
                self._workers, self._owner = [], os.getpid()
            try:
                return _Batch(self, jobs).run()
            except BaseException:  # Ctrl-C: answers would be left in the channels
                self.close()
                raise

    def close(self) -> None:
        """End all fork servers; the next batch starts new ones."""
        while self._workers:
            self._workers.pop().close()

    def ready(self) -> list[Worker]:
        """Its fork servers, started again where they are gone. Raises Lost when that cannot be done."""
        new: list[Worker] = []
        try:
            while len(self._workers) + len(new) < self.count:
                new.append(Worker(self.tier, self.setup))
            for worker in new:
                worker.wait()
        except BaseException:
            for worker in new:
                worker.close()
            raise
        self._workers += new
        return list(self._workers)

    def drop(self, worker: Worker) -> None:
        """Give up a fork server."""
        self._workers.remove(worker)
        worker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Batch:
    """One batch on its way through the fork servers."""

    def __init__(self, sandbox: Sandbox, jobs: Sequence[Job]) -> None:
        self.sandbox, self.jobs = sandbox, jobs
        self.outcomes: list[Outcome | None] = [None] * len(jobs)
        self.tries = [0] * len(jobs)
        self.waiting: deque[list[int]] = deque()
        self.first_group = sandbox.groups  # a fork server must not take this batch's groups for those of the last
        sandbox.groups += 1 + max((job.group for job in jobs), default=0)
        groups: dict[int, list[int]] = {}
        for i, job in enumerate(jobs):
            if job.group < 0:
                self.waiting.append([i])
            elif job.group in groups:
                groups[job.group].append(i)
            else:
                groups[job.group] = [i]
                self.waiting.append(groups[job.group])

    def run(self) -> list[Outcome]:
        while self.waiting:
            try:
                workers = self.sandbox.ready()
            except (Lost, OSError) as error:  # it cannot be started any more
                for i in (i for group in self.waiting for i in group):
                    self.outcomes[i] = Outcome(Ran.LOST, note=f"a fork server could not be started: {error}")
                break
            self._round(workers)
        return [outcome or Outcome(Ran.LOST, note="nothing came of it") for outcome in self.outcomes]

    def _round(self, workers: list[Worker]) -> None:
        """Until all is done, or a fork server was lost and has to be started again."""
        poller = select.poll()
        by_fd = {w.channel.fileno(): w for w in workers}
        for depth in range(1, AHEAD + 1):
            for worker in workers:
                self._feed(worker, depth)
        for worker in workers:
            poller.register(worker.channel, select.POLLIN | (select.POLLOUT if worker.wants_to_send else 0))
        lost = False
        while any(w.asked or w.todo for w in by_fd.values()):
            patience = self.sandbox.limits.wall + self.sandbox.patience
            due = min(w.since + patience for w in by_fd.values() if w.asked)
            ready = poller.poll(max(0.0, due - time.monotonic()) * 1000 + 1)
            late = [fd for fd, w in by_fd.items() if w.asked and time.monotonic() > w.since + patience and fd not in dict(ready)]
            for fd, event in [*ready, *((fd, 0) for fd in late)]:
                worker = by_fd[fd]
                try:
                    if fd in late:
                        raise Lost("")
                    if event & ~select.POLLOUT:
                        for number, kind, seconds, payload in worker.hear():
                            self.outcomes[number] = _outcome(kind, seconds, payload)
                    self._feed(worker, AHEAD, fresh=not lost)
                    worker.send()
                    poller.modify(worker.channel, select.POLLIN | (select.POLLOUT if worker.wants_to_send else 0))
                except Lost as error:
                    lost = True
                    poller.unregister(fd)
                    del by_fd[fd]
                    self._give_up(worker, Ran.HUNG if fd in late else Ran.LOST, str(error))

    def _feed(self, worker: Worker, depth: int, fresh: bool = True) -> None:
        """Keep it busy: with what is left of its group, and then, while no other has to be started, with the next."""
        while len(worker.asked) < depth:
            if not worker.todo:
                if not (fresh and self.waiting):
                    return
                worker.todo.extend(self.waiting.popleft())
            number = worker.todo.popleft()
            job = self.jobs[number]
            worker.ask(number, job, self.first_group + job.group if job.group >= 0 else -1)

    def _give_up(self, worker: Worker, ran: Ran, how: str) -> None:
        """Its first job is under suspicion and has so many tries; what it had not begun costs the others nothing."""
        left = [*worker.asked, *worker.todo]
        worker.asked.clear()
        worker.todo.clear()
        with contextlib.suppress(OSError):
            self.sandbox.drop(worker)
        if not left:
            return
        first = left[0]
        self.tries[first] += 1
        if self.tries[first] > self.sandbox.retries:
            how = how or f"it did not answer within {self.sandbox.limits.wall + self.sandbox.patience:g} s"
            self.outcomes[first] = Outcome(ran, note=f"the fork server was lost {self.tries[first]} times: {how}")
            left = left[1:]
        if left:
            self.waiting.append(left)


def _outcome(kind: int, seconds: float, payload: bytes) -> Outcome:
    if kind == server.VALUE:
        return _value(payload, seconds)
    if kind == server.OUTPUT:
        return Outcome(Ran.VALUE, payload.decode("utf-8", "replace"), "", seconds)
    told = payload.decode("ascii", "replace")
    if kind == server.KILLED:
        return Outcome(Ran.KILLED, None, f"killed by signal {told}", seconds)
    if kind == server.EXITED:
        return Outcome(Ran.EXITED, None, f"left with status {told} and no value", seconds)
    if kind == server.LATE:
        return Outcome(Ran.TIMED_OUT, None, "took too long, or an earlier test of it did", seconds)
    return Outcome(Ran.TOO_LARGE, None, "said too much", seconds)


def _value(payload: bytes, seconds: float) -> Outcome:
    try:
        answer = values.read(payload)
    except values.Unreadable as error:
        return Outcome(Ran.UNREADABLE, None, str(error), seconds)
    if type(answer) is dict and answer.keys() == {"value"}:
        return Outcome(Ran.VALUE, answer["value"], "", seconds)
    if type(answer) is dict and answer.keys() == {"raised"} and type(answer["raised"]) is str:
        note = answer["raised"][:300]
        return Outcome(Ran.MEMORY if note.startswith("MemoryError") else Ran.RAISED, None, note, seconds)
    return Outcome(Ran.UNREADABLE, None, "not what a value is written as", seconds)


_shared: Sandbox | None = None
_sharing = threading.Lock()


def shared() -> Sandbox:
    """The sandbox that all verifiers of this process use, opened and proved at the first call. Raises ConfigError when none can be had."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = Sandbox()
        return _shared
