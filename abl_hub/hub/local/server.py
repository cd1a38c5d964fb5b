"""Starting and stopping a local Hub, and pointing this process's clients at it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from abl_hub.errors import HubError
from abl_hub.hub.local.access import Account
from abl_hub.hub.local.faults import Faults, FaultyApp, Request
from abl_hub.hub.local.routes import application
from abl_hub.hub.local.store import Store

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0


class LocalHub:
    """An embedded Hub: a context manager that serves `root` from a thread of its own.

    It stores LFS objects and knows no Xet, so while it serves, `huggingface_hub` in this process
    uploads and downloads without Xet.

    Args:
        chunked: files show the Xet hash without which clients do not ask for copies.

    Attributes:
        endpoint: what to pass as `endpoint=`, once the context is entered.
        token: a token of `user` that may write.
        requests: every request answered so far (method, path, status; never a header).
        faults: faults to show (see `Fault`).

    Raises:
        HubError: the port is taken, or the server did not start.
    """

    def __init__(
        self, root: Path, user: str = "demo", *, port: int = 0, chunked: bool = True
    ) -> None:
        self.root = root
        self.user = user
        self.endpoint = ""
        self.requests: list[Request] = []
        self.faults = Faults()
        self._port = port
        self._chunked = chunked
        self._accounts: dict[str, Account] = {}
        self.token = self.add_token(user)
        self._stack = ExitStack()

    def add_token(
        self, user: str, *, role: Literal["read", "write"] = "write", token: str | None = None
    ) -> str:
        """Make (and return) a token by which `user` is known."""
        token = token or (f"hf_{user}" if role == "write" else f"hf_{user}_{role}")
        self._accounts[token] = Account(user=user, role=role)
        return token

    def __enter__(self) -> Self:
        from huggingface_hub import constants

        with ExitStack() as stack:
            stack.enter_context(_replaced(vars(constants), {"HF_HUB_DISABLE_XET": True}))
            stack.enter_context(self._serving())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that make another process's Hugging Face clients talk to this."""
        cache = self.root / "client-cache"
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",  # this Hub speaks LFS only
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
        }

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Make the clients of this process (huggingface_hub, transformers, peft, datasets) talk
        to this Hub within the block, with a cache of their own, and restore them after it.

        They read HF_ENDPOINT once, when they are imported; so the variables are set for what is
        imported later, and the constants for what was imported before. Prefer `endpoint=` where
        a function takes it. Process-wide, so one block at a time.
        """
        from huggingface_hub import constants, hf_api

        values = self.variables
        with ExitStack() as stack:
            stack.enter_context(_replaced(os.environ, values))
            template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            hub_constants = {
                "ENDPOINT": self.endpoint,
                "HUGGINGFACE_CO_URL_TEMPLATE": template,
                "HF_HUB_CACHE": values["HF_HUB_CACHE"],
                "HF_HUB_DISABLE_TELEMETRY": True,
            }
            stack.enter_context(_replaced(vars(constants), hub_constants))
            # The module's functions are methods of one instance, made at import.
            stack.enter_context(_replaced(vars(hf_api.api), {"endpoint": self.endpoint}))
            datasets_config = sys.modules.get("datasets.config")
            if datasets_config is not None:
                url = self.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
                changes = {"HF_ENDPOINT": self.endpoint, "HUB_DATASETS_URL": url}
                changes["HF_DATASETS_CACHE"] = values["HF_DATASETS_CACHE"]
                stack.enter_context(_replaced(vars(datasets_config), changes))
            yield

    @contextmanager
    def _serving(self) -> Iterator[None]:
        transports: dict[tuple[str, int], asyncio.Transport] = {}

        class Protocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                transports[transport.get_extra_info("peername")] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                transports.pop(self.transport.get_extra_info("peername"), None)

        def close(client: tuple[str, int], at_once: bool) -> None:
            transport = transports[client]
            if at_once:
                transport.abort()
            else:
                transport.close()

        # Named as TCP, because asyncio sends small answers at once (TCP_NODELAY) only on such.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((HOST, self._port))
            except OSError as error:
                raise HubError(
                    f"The local Hub could not listen on port {self._port}",
                    why=error.strerror or str(error),
                    next_step="Choose another port",
                ) from error
            self._port = listening.getsockname()[1]
            self.endpoint = f"http://{HOST}:{self._port}"
            app = application(
                Store(self.root, chunked=self._chunked), self._accounts, self.endpoint
            )
            config = uvicorn.Config(
                FaultyApp(app, faults=self.faults, log=self.requests, close=close),
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # requests are logged in `requests`; faults are wanted
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(
                target=server.run, kwargs={"sockets": [listening]}, name="local-hub", daemon=True
            )
            thread.start()
            try:
                _wait_until_started(server, thread)
                yield
            finally:
                server.should_exit = True
                thread.join()


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise HubError("The local Hub did not start")
        time.sleep(0.005)


@contextmanager
def _replaced(mapping: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set items of a mutable mapping within the block; restore or remove them after it."""
    before = {key: mapping[key] for key in values if key in mapping}
    mapping.update(values)
    try:
        yield
    finally:
        for key in values:
            if key in before:
                mapping[key] = before[key]
            else:
                mapping.pop(key, None)
