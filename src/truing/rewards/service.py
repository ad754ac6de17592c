"""Scores from a service: ``POST {"prompts": [...], "completions": [...]}`` is answered with ``{"scores": [...]}``.

The environment variable TRUING_REWARD_TOKEN, when set, goes along as ``Authorization: Bearer ...``; it is never written anywhere.
Redirects are not followed, so the token goes to no other host; proxies are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from truing.rewards import answers
from truing.rewards.completions import Completions, failed
from truing.rewards.lines import Lines
from truing.types import Score, Status

TOKEN = "TRUING_REWARD_TOKEN"
LARGEST = 64 << 20  # bytes of an answer
PAUSE = 0.2  # seconds before the one new attempt after a connection that failed


class Service:
    """A scorer over HTTP, within `timeout` seconds a batch, whatever the other side does."""

    def __init__(self, name: str, url: str, timeout: float | None, lines: Lines | None = None) -> None:
        self.name, self.url, self.timeout, self.lines = name, url, timeout, lines

    def __call__(self, batch: Completions) -> list[Score]:
        body = json.dumps({"prompts": batch.prompts, "completions": batch.texts}).encode("ascii")
        call = _Call(self.url, body, self.timeout)
        try:
            found = call.answer()
        except TimeoutError:
            limit = "the system waits" if self.timeout is None else f"{self.timeout:g} s for {len(batch)} completions"
            return [failed(Status.TIMED_OUT, f"{self.name} took longer than {limit}")] * len(batch)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return [failed(Status.CRASHED, f"{self.name}: {_told(error)}")] * len(batch)
        return answers.scores(found, batch, self.name, self.lines)


class _Call:
    """One request in a thread of its own, so that a host that cannot be looked up or an answer that drips cannot hold the run."""

    def __init__(self, url: str, body: bytes, timeout: float | None) -> None:
        self.url, self.body = urlsplit(url), body
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.socket: socket.socket | None = None
        self.given_up = False
        self.result: Any = None
        self.error: Exception | None = None

    def answer(self) -> Any:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(self._left())
        if thread.is_alive():
            self._hang_up()
            thread.join(1.0)
            raise TimeoutError
        if self.error is not None:
            raise self.error
        return self.result

    def _left(self) -> float | None:
        return None if self.deadline is None else max(0.001, self.deadline - time.monotonic())

    def _hang_up(self) -> None:
        self.given_up = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            try:
                self.result = self._post()
            except ConnectionError:
                if self.given_up:
                    raise
                time.sleep(min(PAUSE, self._left() or PAUSE))
                self.result = self._post()
        except Exception as error:  # told to the caller, whatever it is
            self.error = error

    def _post(self) -> Any:
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname or "", self.url.port, timeout=self._left())
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        token = os.environ.get(TOKEN)
        if token:
            if not (token.isascii() and token.isprintable()):  # http.client would quote it in its own message
                raise ValueError(f"{TOKEN} holds a character that no header may; set it again")
            headers["Authorization"] = f"Bearer {token}"
        try:
            connection.connect()
            self.socket = connection.sock  # kept: an answer without a length takes it off the connection
            connection.request("POST", (self.url.path or "/") + (f"?{self.url.query}" if self.url.query else ""), self.body, headers)
            response = connection.getresponse()
            if response.status != 200:
                where = f" to {response.getheader('Location')}; give the address it leads to" if 300 <= response.status < 400 else ""
                raise ValueError(f"it answered {response.status} {response.reason}{where}")
            data = response.read(LARGEST + 1)
        finally:
            connection.close()
        if len(data) > LARGEST:
            raise ValueError(f"its answer is larger than {LARGEST >> 20} MB")
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError(f"its answer is not JSON: {data[:60]!r}") from None
        if not isinstance(found, dict) or not isinstance(found.get("scores"), list):
            raise ValueError(f'its answer is not {{"scores": [...]}}: {data[:60]!r}')
        return found["scores"]


def _told(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
