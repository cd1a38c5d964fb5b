"""The Hub client's errors, told as ours: what happened, why, and what to do. Never a token.

Knows huggingface_hub's and httpx's errors; does not know what the caller was doing with the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from abl_hub.errors import AblHubError, HubError

LOG_IN = "Log in with `hf auth login`, or pass --token or HF_TOKEN"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_CLIENT_ERRORS = (
    httpx.HTTPError,
    OSError,  # most of the client's own errors, and those of a broken connection
    RuntimeError,  # how the client wraps a failed LFS upload
    HFValidationError,
    XetDownloadError,
)


@contextmanager
def translated(
    repo: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    endpoint: str | None = None,
    missing: type[AblHubError] = HubError,
) -> Iterator[None]:
    """Turn what the Hub client raises within the block into an `AblHubError`.

    Args:
        repo: what the block works on, for the message; "" when it is no repository.
        missing: for a block that reads: raised when the repository or revision is not there or
            not open to the token.

    Raises:
        HubError: the Hub refused or could not be reached.
        missing: see there. Other errors (a full disk, a bug) pass unchanged.
    """
    at = _At(repo=repo, kind=kind, revision=revision, endpoint=endpoint or constants.ENDPOINT)
    try:
        yield
    except _CLIENT_ERRORS as error:
        failure = at.explain(error, missing)
        if failure is None:
            raise
        token = _token_sent(error)
        for linked in _chain(error):  # a traceback shows them too
            linked.args = tuple(
                without_tokens(text, token) if isinstance(text, str) else text
                for text in linked.args
            )
        raise failure from error


def without_tokens(text: str, token: str = "") -> str:
    """`text` without `token`, and without anything else that looks like a Hub token."""
    if token:
        text = text.replace(token, "hf_***")
    return _TOKEN.sub("hf_***", text)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed if it is sent again."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 409, 412, 429, 500, 502, 503, 504)
    return isinstance(error, (httpx.TransportError, ConnectionError)) and not isinstance(
        error, OfflineModeIsEnabled
    )


def root_failure(error: BaseException) -> BaseException | None:
    """The Hub's answer, or the broken connection, behind a client's error; None if neither."""
    for linked in _chain(error):
        if isinstance(linked, (HfHubHTTPError, httpx.TransportError, OfflineModeIsEnabled)):
            return linked
        if isinstance(linked, (ConnectionError, LocalTokenNotFoundError, XetDownloadError)):
            return linked
    return None


def retry_after_s(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait, where it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    asked = error.response.headers.get("retry-after", "")
    return float(asked) if asked.isdigit() else None


class _At:
    """Where a failure happened, and how it reads."""

    def __init__(self, *, repo: str, kind: str, revision: str | None, endpoint: str) -> None:
        prefix = "" if kind == "model" else f"{kind}s/"
        self.repo, self.name = repo, repo or "The Hub"
        self.url = f"{endpoint}/{prefix}{repo}" if repo else endpoint
        self.kind, self.revision, self.endpoint = kind, revision, endpoint

    def explain(self, error: BaseException, missing: type[AblHubError]) -> AblHubError | None:
        if isinstance(error, HFValidationError):
            return missing(
                f"{self.name!r} is not the name of a repository",
                next_step="Give it as owner/name, or the path of a folder",
            )
        failure = root_failure(error)
        if failure is None:
            return None
        if isinstance(failure, HfHubHTTPError):
            return self._answer(failure, missing)
        if isinstance(failure, LocalTokenNotFoundError):
            return HubError("The Hub needs to know who you are", next_step=LOG_IN)
        if isinstance(failure, OfflineModeIsEnabled):
            return HubError(
                f"{self.name} is not in the local cache",
                why="HF_HUB_OFFLINE is set",
                next_step="Unset it, or download the files first",
            )
        if isinstance(failure, (httpx.ConnectError, httpx.ConnectTimeout)):
            return HubError(
                f"{self.endpoint} cannot be reached" + (f" for {self.repo}" if self.repo else ""),
                why="there is no connection",
                next_step="Connect and run the command again, or set HF_HUB_OFFLINE=1 to use what "
                "was downloaded before; write a folder of this machine with a slash, as in ./model",
            )
        return HubError(
            f"The connection to {self.endpoint} was lost",
            why=type(failure).__name__,
            next_step="Run the command again: what was transferred already is kept",
        )

    def _answer(self, error: HfHubHTTPError, missing: type[AblHubError]) -> AblHubError:
        status = error.response.status_code
        said = _said(error)
        signed_in = "authorization" in error.response.request.headers
        if isinstance(error, GatedRepoError):
            return missing(
                f"{self.name} is gated",
                why="its owner asks readers to accept conditions first",
                next_step=f"Accept them at {self.url}" + ("" if signed_in else f". {LOG_IN}"),
            )
        if isinstance(error, RevisionNotFoundError):
            return missing(
                f"{self.name} has no revision {self.revision!r}",
                next_step=f"See its branches and tags at {self.url}/tree/main",
            )
        if isinstance(error, RepositoryNotFoundError):
            why = "does not exist, or it is private and "
            why += "your token has no access to it" if signed_in else "no token was sent"
            return missing(
                f"The {self.kind} {self.name} was not found on {self.endpoint}",
                why=f"it {why}",
                next_step="Check the name" if signed_in else f"Check the name. {LOG_IN}",
            )
        if status == 401:
            why = "the token is not valid" if signed_in else "no token was sent"
            at = f" ({self.repo})" if self.repo else ""
            return HubError(f"The Hub does not know who you are{at}", why=said or why,
                            next_step=LOG_IN)  # fmt: skip
        if status == 403 and missing is not HubError:
            return missing(
                f"The Hub does not let this token read {self.name}",
                why=said,
                next_step=f"Look at {self.url}, or use another token",
            )
        if status in (402, 403):
            return HubError(
                f"The Hub does not let this token write to {self.name}",
                why=said or "the token has no write permission there",
                next_step="Use a token with write permission for this namespace "
                "(https://huggingface.co/settings/tokens), or another name",
            )
        if status in (409, 412):
            return HubError(
                f"{self.name} was changed by someone else at the same time",
                why=said,
                next_step="Run the command again",
            )
        if status == 429:
            wait = retry_after_s(error)
            return HubError(
                "The Hub asks to slow down",
                why="too many requests",
                next_step=f"Run the command again in {wait:.0f} s" if wait
                else "Run the command again in a few minutes",
            )  # fmt: skip
        if status >= 500:
            return HubError(
                f"The Hub failed (HTTP {status})",
                why=said,
                next_step="Run the command again later: what was transferred already is kept",
            )
        return HubError(
            f"The Hub refused a request about {self.name} (HTTP {status})",
            why=said,
            next_step=f"Look at {self.url}",
        )


def _said(error: HfHubHTTPError) -> str:
    """What the Hub said, on one line and without tokens."""
    said = " ".join((error.server_message or "").split())
    return without_tokens(said, _token_sent(error))[:300]


def _token_sent(error: BaseException) -> str:
    failure = root_failure(error)
    if not isinstance(failure, HfHubHTTPError):
        return ""
    sent: str = failure.response.request.headers.get("authorization", "")
    return sent.removeprefix("Bearer ")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
