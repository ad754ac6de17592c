"""Rewards that hang, die or lie: bounded time, a status, and nothing left behind. Real processes, a real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truing.errors import ConfigError, RewardError
from truing.models.pack import Pack
from truing.rewards import wire
from truing.rewards.scorers import Completions, Isolated, Service, find_scorer
from truing.rewards.worker import plain
from truing.types import Score, Status

FUNCTIONS = '''
import ctypes, os, re, subprocess, sys, time

def length(prompts, completions):
    print("noise on standard output", flush=True)
    os.write(1, b"more")
    return [float(len(c)) for c in completions]

def environment(prompts, completions): return [float(os.environ["OMP_NUM_THREADS"]), float(len(sys.stdin.read()))] + [0.0] * (len(completions) - 2)
def sleeps(prompts, completions): time.sleep(1000)
def holds(prompts, completions): re.match(r"(a+)+b", "a" * 60)  # never lets another thread run
def sometimes(prompts, completions): return time.sleep(1000) if "hang" in completions else [1.0] * len(completions)
def crashes(prompts, completions): ctypes.string_at(0)
def exits(prompts, completions): os._exit(3)
def leaves(prompts, completions): sys.exit(0)
def raises(prompts, completions): raise ValueError("no\\nluck")
def short(prompts, completions): return [1.0]
def nothing(prompts, completions): return None
def texts(prompts, completions): return ["1.0"] * len(completions)
def truths(prompts, completions): return [True] * len(completions)
def holes(prompts, completions): return [None] * len(completions)
def strange(prompts, completions): return [float("nan"), float("inf")] + [10**400] * (len(completions) - 2)
def echo(prompts, completions): return [float(c == "\\ud800 \\x00 é" and p == "p" * 300000) for p, c in zip(prompts, completions)]

def forks(prompts, completions):
    child = subprocess.Popen(["sleep", "1000"])
    with open(completions[0], "w") as f: f.write(str(child.pid))
    time.sleep(1000)
'''


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))


def batch(n: int = 4, text: str = "word", prompt: str = "p") -> Completions:
    return Completions([prompt] * n, [text] * n, Pack([[1, 2]] * n), [1] * n, [True] * n)


def isolated(name: str, timeout: float | None = 20.0) -> Any:
    return find_scorer(f"their_rewards:{name}", timeout=timeout)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path(f"/proc/{pid}").exists() else True


def gone(pid: int, within: float = 5.0) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


def reason(score: Score) -> str:
    return next(iter(score.parts))


# -- functions -----------------------------------------------------------------------------------------------------------
def test_scores_come_back_and_prints_stay_out_of_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    found = isolated("length")(batch(3, "four"))
    assert [(s.value, dict(s.parts), s.status) for s in found] == [(4.0, {"length": 4.0}, Status.OK)] * 3
    out, err = capfd.readouterr()
    assert out == "" and "noise on standard output" in err
    assert isolated("echo")(batch(2, "\ud800 \0 é", "p" * 300_000))[1].value == 1.0  # larger than a pipe holds


def test_it_has_one_thread_and_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    reading, writing = os.pipe()
    os.write(writing, b"typed by somebody")
    os.close(writing)
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert [s.value for s in isolated("environment")(batch(3))] == [1.0, 0.0, 0.0]
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("sleeps", Status.TIMED_OUT, "sleeps took longer than 0.3 s for 4 completions"),
        ("holds", Status.TIMED_OUT, "holds took longer"),
        ("crashes", Status.CRASHED, "killed by SIGSEGV"),
        ("exits", Status.CRASHED, "exited with status 3"),
        ("leaves", Status.CRASHED, "SystemExit: 0"),
        ("raises", Status.CRASHED, "ValueError: no luck"),
    ],
)
def test_what_fails_is_a_status_within_bounded_time(name: str, status: Status, why: str) -> None:
    scorer = isolated(name, timeout=0.3)
    start = time.monotonic()
    found = scorer(batch())
    assert time.monotonic() - start < 3.0
    assert [s.status for s in found] == [status] * 4 and why in reason(found[0]), found[0]
    assert all(not s.status.usable and s.value != s.value for s in found)


@pytest.mark.parametrize("timeout", [20.0, None])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "short gave 1 scores for 4 completions"),
        ("nothing", "nothing gave None of type NoneType; return a float"),
        ("texts", "texts gave '1.0' of type str; return a float"),
        ("truths", r"truths gave True of type bool; return a float for each completion \(1.0 and 0.0 for yes and no\)"),
        ("holes", "holes gave None of type NoneType"),
    ],
)
def test_what_is_no_list_of_numbers_stops_the_run(name: str, message: str, timeout: float | None) -> None:
    with pytest.raises(RewardError, match=message):
        isolated(name, timeout)(batch())


@pytest.mark.parametrize("timeout", [20.0, None])
def test_numbers_that_are_not_finite_mark_their_samples(timeout: float | None) -> None:
    found = isolated("strange", timeout)(batch(3))
    assert [s.status for s in found] == [Status.NON_FINITE] * 3 and [reason(s) for s in found] == ["strange gave nan", "strange gave inf", "strange gave inf"]


@pytest.mark.parametrize("timeout", [20.0, None])
def test_a_function_that_cannot_be_imported_is_refused_at_once(timeout: float | None, tmp_path: Path) -> None:
    (tmp_path / "dies_early.py").write_text("import os; os._exit(7)")
    cases = {"their_rewards:absent": "has no attribute 'absent'", "no_such_module:f": "No module named", "their_rewards:os": "not a function"}
    cases |= {"dies_early:f": "exited with status 7"} if timeout else {}
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=f"cannot be imported.*{message}.*(write package.module:function|run from the folder that holds it)"):
            find_scorer(name, timeout=timeout)


def test_the_next_batch_gets_a_fresh_process() -> None:
    scorer = isolated("sometimes", timeout=0.5)
    assert scorer(batch())[0].value == 1.0
    first = scorer.process.pid
    assert scorer(batch(text="hang"))[0].status == Status.TIMED_OUT and gone(first)
    assert scorer(batch())[0].value == 1.0 and scorer.process.pid != first
    os.kill(scorer.process.pid, signal.SIGKILL)
    assert "killed by SIGKILL" in reason(scorer(batch())[0])
    assert scorer(batch())[0].value == 1.0


def test_what_a_function_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    assert isolated("forks", timeout=1.0)(batch(text=str(note)))[0].status == Status.TIMED_OUT
    assert gone(int(note.read_text()))


def children() -> list[int]:
    me, found = str(os.getpid()), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == me:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts through /proc")
def test_thirty_timeouts_leave_nothing_behind() -> None:
    scorer = isolated("sleeps", timeout=0.02)
    scorer(batch())
    before = len(os.listdir("/proc/self/fd")), sorted(children()), threading.active_count()
    for _ in range(30):
        assert scorer(batch())[0].status == Status.TIMED_OUT
    assert (len(os.listdir("/proc/self/fd")), sorted(children()), threading.active_count()) == before
    kept = isolated("length")
    pid = kept.process.pid
    assert pid in children()
    del kept  # with the scorer goes its process
    assert gone(pid) and pid not in children()


@pytest.mark.parametrize("name", ["length", "sleeps", "holds"])
def test_no_orphan_outlives_a_run_that_was_killed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Idle, busy, and busy in a way that lets no other thread run, for which the watchdog is there."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import truing.rewards.process as p, truing.rewards.worker\n"
        f"w = p.Process('their_rewards:{name}'); w.start(); print(w.pid, flush=True)\n"
        + ("time.sleep(100)" if name == "length" else "w.ask(['p'], ['c'], 0.7)" if name == "holds" else "w.ask(['p'], ['c'], 100)")
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())  # type: ignore[union-attr]
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()  # type: ignore[union-attr]
    assert gone(pid, within=8.0 if name == "holds" else 2.0)


def test_a_warm_process_costs_less_than_two_milliseconds_a_batch() -> None:
    scorer, given = isolated("sometimes"), batch(64, "some words " * 20, "a question " * 10)
    scorer(given)
    times = []
    for _ in range(60):
        start = time.perf_counter()
        scorer(given)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3  # the least: on a busy machine each change of process may wait a scheduler's tick of 4 ms


def test_answers_are_told_apart_before_they_leave_the_process() -> None:
    assert plain([1, 2.5, np.float32(0.5), np.int64(3)]) == [1.0, 2.5, 0.5, 3.0]
    assert plain(np.array([1.0, 2.0])) == [1.0, 2.0] and plain(float(i) for i in range(2)) == [0.0, 1.0]
    assert plain([[1, np.float64(2)], (3.0,), np.array([4.0])]) == [[1.0, 2.0], [3.0], [4.0]]
    assert plain([np.bool_(True)]) == [{"type": type(np.bool_(True)).__name__, "text": repr(np.bool_(True))}]
    assert plain([[[1.0]]]) == [[{"type": "list", "text": "[1.0]"}]]
    assert plain("12") == {"type": "str", "text": "'12'"} and plain({1: 2}) == {"type": "dict", "text": "{1: 2}"} and plain(1.0)["type"] == "float"


def test_messages_come_whole_however_they_are_cut() -> None:
    incoming, data, found = wire.Incoming(), wire.pack({"a": "é\ud800"}) + wire.pack([1]), []
    for i in range(len(data)):
        incoming.feed(data[i : i + 1])
        if (message := incoming.take()) is not None:
            found.append(message)
    assert found == [{"a": "é\ud800"}, [1]]
    incoming.feed(b"\xff" * 8)
    with pytest.raises(ValueError, match="bytes"):
        incoming.take()


# -- services ------------------------------------------------------------------------------------------------------------
Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], tuple[int, bytes] | None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """A real server on a port of its own; the test says how it answers."""
    servers = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                found = answer(self, asked)
                if found is not None:
                    self.send_response(found[0])
                    self.send_header("Content-Length", str(len(found[1])))
                    self.end_headers()
                    self.wfile.write(found[1])

            def log_message(self, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def given(scores: object) -> Answer:
    return lambda _, asked: (200, json.dumps({"scores": scores}).encode())


def ask(url: str, timeout: float | None = 10.0, n: int = 2) -> list[Score]:
    return find_scorer(url, timeout=timeout)(batch(n))


def test_a_service_scores(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def answer(request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> tuple[int, bytes]:
        seen.append((request.path, request.headers["Authorization"], asked))
        return 200, json.dumps({"scores": [len(c) for c in asked["completions"]]}).encode()

    url = serve(answer)
    found = ask(url + "/v1/score?x=1")
    assert [s.value for s in found] == [4.0, 4.0] and found[0].parts == {url.removeprefix("http://") + "/v1/score": 4.0}
    monkeypatch.setenv("TRUING_REWARD_TOKEN", "canary-token")
    ask(url)
    assert seen == [("/v1/score?x=1", None, {"prompts": ["p", "p"], "completions": ["word", "word"]}), ("/", "Bearer canary-token", seen[1][2])]
    both = find_scorer(f'http("{url}", timeout=5) - 0.5 * tokens()')(batch(2))
    assert both[0].value == 3.5


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda *_: (500, b"oh"), "it answered 500 Internal Server Error"),
        (lambda *_: (404, b""), "it answered 404"),
        (lambda *_: (302, b""), "it answered 302"),
        (lambda *_: (200, b"<html>"), "its answer is not JSON: b'<html>'"),
        (lambda *_: (200, b"[1, 2]"), 'its answer is not {"scores": [...]}'),
        (lambda *_: (200, b'{"scores": 3}'), 'its answer is not {"scores": [...]}'),
        (lambda *_: (200, b"\xff\xfe"), "its answer is not JSON"),
    ],
)
def test_a_service_that_fails_is_a_crash_with_the_reason(serve: Callable[[Answer], str], answer: Answer, why: str) -> None:
    found = ask(serve(answer))
    assert [s.status for s in found] == [Status.CRASHED] * 2 and why in reason(found[0]), found[0]


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0], "gave 1 scores for 2 completions"), ([None, 1.0], "NoneType"), (["1", 1.0], "'1' of type str"), ([True, 1.0], "of type bool"), ([{}, 1.0], "dict")]
)
def test_a_service_that_answers_something_else_stops_the_run(serve: Callable[[Answer], str], scores: object, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        ask(serve(given(scores)))


def test_numbers_of_a_service_that_are_not_finite(serve: Callable[[Answer], str]) -> None:
    url = serve(lambda *_: (200, b'{"scores": [NaN, 1' + b"0" * 400 + b"]}"))
    assert [s.status for s in ask(url)] == [Status.NON_FINITE] * 2


def test_a_slow_service_is_given_up_on_time(serve: Callable[[Answer], str]) -> None:
    stop = threading.Event()

    def drips(request: BaseHTTPRequestHandler, asked: object) -> None:
        """One byte at a time: each read succeeds, the whole never does."""
        request.send_response(200)
        request.end_headers()
        try:
            while not stop.wait(0.05):
                request.wfile.write(b" ")
                request.wfile.flush()
        except OSError:
            pass

    for answer in (lambda *_: stop.wait(20) and None, drips):
        start, threads = time.monotonic(), threading.active_count()
        found = ask(serve(answer), timeout=0.4)
        assert 0.35 < time.monotonic() - start < 2.0
        assert [s.status for s in found] == [Status.TIMED_OUT] * 2 and "took longer than 0.4 s for 2 completions" in reason(found[0])
        assert threading.active_count() <= threads + 2  # the server's own
    stop.set()


def test_a_connection_that_fails_is_tried_once_more(serve: Callable[[Answer], str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    found = ask(f"http://127.0.0.1:{port}/score")
    assert found[0].status == Status.CRASHED and "ConnectionRefusedError" in reason(found[0]) and 0.15 < time.monotonic() - start < 3
    calls = []

    def second_time(request: BaseHTTPRequestHandler, asked: object) -> tuple[int, bytes] | None:
        calls.append(1)
        if len(calls) == 1:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return None
        return 200, b'{"scores": [1, 2]}'

    assert [s.value for s in ask(serve(second_time))] == [1.0, 2.0] and len(calls) == 2
    assert "500" in reason(ask(serve(lambda *_: calls.append(1) or (500, b"")))[0]) and len(calls) == 3  # type: ignore[func-returns-value]


def test_the_token_is_in_no_message(monkeypatch: pytest.MonkeyPatch, serve: Callable[[Answer], str]) -> None:
    monkeypatch.setenv("TRUING_REWARD_TOKEN", "canary\ntoken")  # http.client's own message would quote it
    found = ask(serve(given([1, 2])))
    assert found[0].status == Status.CRASHED and "TRUING_REWARD_TOKEN" in reason(found[0]) and "canary" not in str(found)


def test_scorers_are_what_their_texts_say() -> None:
    assert isinstance(find_scorer("https://host/x"), Service) and isinstance(isolated("length"), Isolated)
