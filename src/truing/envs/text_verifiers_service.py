"""The model that an environment of the package verifiers talks with: a local endpoint that answers when Truing's sampler has.

verifiers runs an episode as a coroutine that asks a model over HTTP. Here that coroutine runs in a thread of its own; the question
is handed to whoever waits for it (`Playing.wait`), and answered with what the sampler said (`Playing.say`). The harness, which
stands between the environment and the model, is the shortest there can be: one question a segment, in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import queue
import sys
import threading
from typing import Any

import httpx  # type: ignore[import-not-found,import-untyped,unused-ignore]
import verifiers.v1 as vf  # type: ignore[import-not-found,import-untyped,unused-ignore]
from aiohttp import web  # type: ignore[import-not-found,import-untyped,unused-ignore]

from truing.errors import ConfigError
from truing.types import Score, Status

LOOK = 0.25  # seconds between looks whether whoever waits is to stop
HARNESS = "truing_harness"  # verifiers finds a harness as a module of this name


class _Config(vf.HarnessConfig):
    id: str = HARNESS


class Direct(vf.Harness[_Config]):
    """Asks the model once a segment, with the whole conversation."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any) -> Any:
        system, prompt = self.resolve_prompt(data)
        asked = [{"role": "system", "content": system}] if system else []
        asked += _plain(prompt)
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            reply = await client.post(f"{endpoint}/chat/completions", headers={"Authorization": f"Bearer {secret}"}, json={"model": ctx.model, "messages": asked})
        ended = reply.status_code == 400  # the model says no more, or a limit or stop of the environment refused the turn
        return vf.ProgramResult(exit_code=0 if ended or reply.is_success else 1, stdout="", stderr=reply.text[-500:])


class Playing:
    """One episode: questions come out, answers go in, from a thread that is not the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seat: str) -> None:
        self.loop, self.seat = loop, seat
        self.questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.reply: asyncio.Future[Any] | None = None
        self.running: Any = None
        self.episode: Any = None
        self.error: BaseException | None = None
        self.over = self.closed = False

    def wait(self) -> list[dict[str, Any]] | None:
        """The messages of the environment's next question; None when it has none any more."""
        while not self.over:
            with contextlib.suppress(queue.Empty):  # a short wait each time, so that this thread can be told to stop
                asked = self.questions.get(timeout=LOOK)
                self.over = asked is None
                return asked
        return None

    def say(self, text: str, why: str = "stop") -> None:
        self._answer((text, why))

    def refuse(self) -> None:
        """Answer nothing more, and let the environment come to its end."""
        self.closed = True
        self._answer(None)
        while self.wait() is not None:
            self._answer(None)

    def cancel(self) -> None:
        if self.running is not None:
            self.running.cancel()

    def failure(self) -> Exception | None:
        """What went wrong in the environment, if anything did."""
        if self.error is not None:
            return RuntimeError(f"{type(self.error).__name__}: {self.error}")
        errors = [e for t in (self.episode.traces if self.episode else ()) for e in t.errors if not t.ok] + list(self.episode.errors if self.episode else ())
        return RuntimeError(f"{errors[0].type}: {errors[0].message}") if errors else None

    def score(self) -> Score:
        """The rubric's, with its named rewards. Raises what went wrong in the environment."""
        failure = self.failure()
        mine = [t for t in (self.episode.traces if self.episode else ()) if t.agent.name in ("", None, self.seat)]
        if failure is not None or not mine:
            raise failure or RuntimeError("the environment ended without a trace of the model")
        trace = mine[-1]
        value = float(trace.reward)
        if not math.isfinite(value):
            return Score(math.nan, {f"verifiers gave {value}": math.nan}, Status.NON_FINITE)
        named = {name: _number(found) for name, found in {**trace.metrics, **trace.rewards}.items()}
        return Score(value, {"environment": value, **{n: v for n, v in named.items() if v is not None}}, Status.OK if value >= 1 else Status.WRONG)

    def _answer(self, reply: tuple[str, str] | None) -> None:
        future, self.reply = self.reply, None
        if future is not None:
            self.loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(reply))


class Open:
    """An environment that is being served, and its tasks as far as they have been read."""

    def __init__(self, service: Service, env: Any, seat: str) -> None:
        self.service, self.env, self.seat = service, env, seat
        self.tasks, self.read = iter(env.taskset), list[Any]()
        self.lock = threading.Lock()

    def task(self, position: int) -> Any:
        with self.lock:
            while len(self.read) <= position and (task := next(self.tasks, None)) is not None:
                self.read.append(task)
        return self.read[position] if 0 <= position < len(self.read) else None

    def row(self, position: int) -> dict[str, Any]:
        data = self.read[position].data
        asked = ([{"role": "system", "content": data.system_prompt}] if data.system_prompt else []) + _plain(data.prompt)
        return {"id": data.id or data.name or f"task-{position}", "prompt": asked or [{"role": "user", "content": "Begin."}], "task": position}

    def begin(self, task: Any) -> Playing:
        return self.service.begin(self.env, task, self.seat)


class Service:
    """One event loop in a thread, one endpoint, and the environments that were opened; started when it is first needed."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.url = ""
        self.playing: dict[str, Playing] = {}
        self.numbers = itertools.count()
        self.environments: dict[str, Open] = {}
        self.lock = threading.Lock()
        self.resources = contextlib.AsyncExitStack()

    def opened(self, taskset: str, env: str, seat: str, config: dict[str, Any], options: dict[str, Any]) -> Open:
        key = json.dumps([taskset, env, seat, config, options], sort_keys=True, default=str)
        with self.lock:
            if key not in self.environments:
                self._start()
                self.environments[key] = self._open(taskset, env, seat, config, options)
            return self.environments[key]

    def _open(self, taskset: str, env: str, seat: str, config: dict[str, Any], options: dict[str, Any]) -> Open:
        try:
            data = {**config, "id": env, "taskset": {**config.get("taskset", {}), "id": taskset, **options}}
            seats = [n for n, f in vf.env_config_type(taskset, env).model_fields.items() if isinstance(f.default, vf.AgentConfig)]
            if not seat and len(seats) > 1:
                raise ConfigError(f"environment verifiers:{taskset} has the agents {', '.join(seats)}; say which one the model plays: seat={seats[0]!r}")
            played = seat or seats[0]
            if played not in seats:
                raise ConfigError(f"environment verifiers:{taskset} has no agent {played!r}; it has {', '.join(seats)}")
            data[played] = {**data.get(played, {}), "harness": {"id": HARNESS}, "runtime": {"type": "subprocess"}}
            made = vf.load_environment(vf.resolve_env_config(data))
            task = type(made.taskset).task_type()
            if made.taskset.toolsets(made.taskset.config) or task.toolsets(made.taskset.config.task):
                raise ConfigError(f"environment verifiers:{taskset} brings tools (MCP servers), which this adapter does not serve; use a taskset without tools")
            if task.NEEDS_CONTAINER:
                raise ConfigError(f"environment verifiers:{taskset} needs a container for its tasks; use a taskset that does without")
        except ConfigError:
            raise
        except Exception as error:  # a plugin's import and validation can raise anything
            raise ConfigError(f"environment verifiers:{taskset} cannot be opened: {type(error).__name__}: {error}") from error
        self._run(self._serve(made))
        return Open(self, made, played)

    def begin(self, env: Any, task: Any, seat: str) -> Playing:
        name = f"truing-{next(self.numbers)}"
        loop = self._start()
        playing = self.playing[name] = Playing(loop, seat)
        context = vf.ModelContext(model=name, client=vf.EvalClientConfig(base_url=self.url, api_key_var="TRUING_NEEDS_NO_KEY"))

        async def run() -> None:
            try:
                playing.episode = await env.run_episode(task, context)
            except BaseException as error:
                playing.error = error
                raise
            finally:
                self.playing.pop(name, None)
                playing.questions.put(None)

        playing.running = asyncio.run_coroutine_threadsafe(run(), loop)
        return playing

    async def _asked(self, request: web.Request) -> web.Response:
        body = await request.json()
        playing = self.playing.get(body["model"])
        if playing is None or playing.closed:
            return web.json_response({"error": {"message": "the model says no more"}}, status=400)
        playing.reply = reply = asyncio.get_running_loop().create_future()
        playing.questions.put(body["messages"])
        answer = await reply
        if answer is None:
            return web.json_response({"error": {"message": "the model says no more"}}, status=400)
        text, why = answer
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": why}
        return web.json_response({"id": "truing", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]})

    async def _serve(self, env: Any) -> None:
        """Enter the environment's own resources, which stay open as long as the process."""
        await self.resources.enter_async_context(env.serving())

    def _start(self) -> asyncio.AbstractEventLoop:
        if self.loop is None:
            sys.modules.setdefault(HARNESS, sys.modules[__name__])
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True, name="truing-verifiers").start()
            self.url = self._run(self._listen())
        return self.loop

    async def _listen(self) -> str:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._asked)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    def _run(self, work: Any) -> Any:
        if self.loop is None:
            raise RuntimeError("the loop was not started")
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60.0)


def _plain(prompt: Any) -> list[dict[str, Any]]:
    """A task's prompt as messages of role and text."""
    if prompt is None:
        return []
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": m.role, "content": m.content} for m in prompt]


def _number(found: Any) -> float | None:
    value = getattr(found, "score", found)  # a reward before its weight
    return float(value) if isinstance(value, int | float) else None


SERVICE = Service()
__all__ = ["Direct"]  # what verifiers looks for in the module of a harness
