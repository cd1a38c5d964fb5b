"""Trying again: what a broken connection or a busy Hub needs, a bounded number of times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from abl_hub.hub.failures import is_transient, retry_after_s, root_failure

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How often and how patiently to try again.

    Args:
        tries: in all, the first included.
        first_wait_s: doubled after each try; a Retry-After from the Hub goes first.
        longest_wait_s: a Hub that asks for more than this is not waited for.
    """

    tries: int = 4
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def run(self, attempt: Callable[[], Result]) -> Result:
        """The result of `attempt`, which must be safe to repeat after it failed half-way.

        Raises:
            Exception: the last failure, or the first that no repetition can cure.
        """
        for tried in range(1, self.tries + 1):
            try:
                return attempt()
            except Exception as error:
                failure = root_failure(error)
                if tried == self.tries or failure is None or not is_transient(failure):
                    raise
                asked = retry_after_s(failure)
                if asked is not None and asked > self.longest_wait_s:
                    raise
            wait_s = self.first_wait_s * 2 ** (tried - 1)
            time.sleep(min(wait_s if asked is None else asked, self.longest_wait_s))
        raise AssertionError("tries must be at least 1")
