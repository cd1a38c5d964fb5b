"""Who is measured: a chat model and the context it runs in. What the context does is unseen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from abl_hub.model.chat import ChatModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Something that replies and gives likelihoods.

    Args:
        chat: the model.
        active: opens the context in which it is measured (as it is, if not given).
    """

    chat: ChatModel
    active: Callable[[], AbstractContextManager[None]] = nullcontext
