"""Whose token it is: the user that something is published under."""

from __future__ import annotations

from huggingface_hub import HfApi, get_token

from abl_hub.errors import HubError
from abl_hub.hub.failures import LOG_IN, translated
from abl_hub.hub.retry import Backoff


def namespace(*, token: str | None = None, endpoint: str | None = None) -> str:
    """The user whom the token belongs to.

    Raises:
        HubError: no token, an invalid one, or the Hub could not be reached.
    """
    if not (token or get_token()):
        raise HubError("Publishing needs a Hub account", why="there is no token", next_step=LOG_IN)
    api = HfApi(endpoint=endpoint, token=token)
    with translated("", endpoint=api.endpoint):
        name: str = Backoff().run(api.whoami)["name"]
    return name
