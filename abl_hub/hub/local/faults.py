"""Faults that a local Hub can be asked to show, and the log of what it was asked.

Knows HTTP at the level of one request and its connection; knows nothing of repositories.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CloseConnection = Callable[[tuple[str, int], bool], None]
"""Close the connection of a client address; True: at once, what is in flight is lost."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answered request. `status` is 0 when the connection was dropped."""

    method: str
    path: str
    status: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with the requests that match.

    `kind`:
        "status"    answer `status` with `headers`, without doing anything
        "drop"      close the connection, without doing anything
        "lose"      do what was asked, then close the connection without an answer
        "truncate"  do what was asked, then send half of the body and close the connection
        "slow"      wait `seconds`, then answer
    """

    kind: Literal["status", "drop", "lose", "truncate", "slow"]
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "injected fault"
    seconds: float = 0.0
    method: str | None = None
    """Only requests of this method; None: all."""
    path: str = ""
    """Only requests whose path contains a match of this regular expression."""
    skip: int = 0
    """Let this many matching requests pass first."""
    times: int | None = 1
    """Go wrong this often; None: always."""

    def matches(self, method: str, path: str) -> bool:
        return self.method in (None, method) and re.search(self.path, path) is not None


class Faults:
    """The faults that are set now. Threads may add and remove while the Hub is serving."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[tuple[Fault, list[int]]] = []

    @contextmanager
    def set(self, fault: Fault) -> Iterator[None]:
        """Show `fault` within the block."""
        entry = (fault, [0])
        with self._lock:
            self._seen.append(entry)
        try:
            yield
        finally:
            with self._lock:
                self._seen = [other for other in self._seen if other is not entry]

    def next(self, method: str, path: str) -> Fault | None:
        """The fault that this request must show; counts the request."""
        with self._lock:
            for fault, count in self._seen:
                if not fault.matches(method, path):
                    continue
                index = count[0] - fault.skip
                count[0] += 1
                if index >= 0 and (fault.times is None or index < fault.times):
                    return fault
        return None


class FaultyApp:
    """An ASGI application around another that logs each request and shows the faults set."""

    def __init__(
        self, app: ASGIApp, *, faults: Faults, log: list[Request], close: CloseConnection
    ) -> None:
        self.app, self.faults, self.log, self.close = app, faults, log, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode().split("?")[0]
        fault = self.faults.next(method, path)
        kind = fault.kind if fault else None
        status = 0
        dropped = False

        def log(status: int) -> None:
            self.log.append(Request(method=method, path=path, status=status))

        def drop(*, at_once: bool) -> None:
            nonlocal dropped
            dropped = True
            log(0)
            self.close(scope["client"], at_once)

        async def answer(message: Message) -> None:
            nonlocal status
            if dropped or kind == "lose":
                return
            if message["type"] == "http.response.start":
                status = message["status"]
            elif kind == "truncate":
                half = message.get("body", b"")[: len(message.get("body", b"")) // 2]
                await send({"type": "http.response.body", "body": half, "more_body": True})
                drop(at_once=False)
                return
            elif not message.get("more_body"):
                log(status)  # before the client can know that it was answered
            await send(message)

        if fault and kind == "slow":
            await asyncio.sleep(fault.seconds)
        if kind == "drop":
            drop(at_once=True)
        elif fault and kind == "status":
            await _read_body(receive)
            await _refuse(fault, answer)
        else:
            await self.app(scope, receive, answer)
        if kind == "lose":
            drop(at_once=True)
        if dropped:
            await _until_disconnected(receive)


async def _refuse(fault: Fault, send: Send) -> None:
    body = json.dumps({"error": fault.message}).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "X-Error-Message": fault.message,
        **fault.headers,
    }
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


async def _read_body(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request":
        if not message.get("more_body"):
            return


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
