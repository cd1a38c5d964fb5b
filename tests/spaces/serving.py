"""A Space's app in a process of its own, on a free port; how the browser is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

START_S = 180
_CHROMIUM = "/usr/bin/chromium"  # Debian's
# No window and no sandbox, as in a container, and no look at its maker's hosts.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a fresh profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_CHROMIUM, args=_FLAGS, timeout=120_000
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(
    folder: Path, *, python: str = sys.executable, env: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Address of the running app; ends the process in the end.

    Args:
        folder: of the Space: app.py and what lies beside it.
        python: the interpreter, with its environment.
        env: added to this process's own, without our PYTHONPATH.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ours = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings = {
        "PYTHONPATH": str(folder),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    output = folder.with_name(f"{folder.name}.log")
    with output.open("w") as log:
        process = subprocess.Popen(
            [python, "-P", "app.py"],
            cwd=folder,
            env={**ours, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_S
            while not _open(port):
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
