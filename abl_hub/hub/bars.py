"""The Hub client's own progress bars, silenced where ours show the same thing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)


@contextmanager
def client_bars_silenced() -> Iterator[None]:
    """No bars of the client within the block. A choice by HF_HUB_DISABLE_PROGRESS_BARS stays."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
