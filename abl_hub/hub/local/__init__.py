"""A Hub on loopback: the real clients push to it and load from it, no network needed.

    with LocalHub(folder) as hub:
        HfApi(endpoint=hub.endpoint, token=hub.token).create_repo("demo/model", private=True)

Knows how to start, stop and point clients at it. The protocol is in `routes`, the state in
`store`, the faults that tests ask for in `faults`. It serves 127.0.0.1 and nothing else.
"""

from abl_hub.hub.local.faults import Fault, Faults, Request
from abl_hub.hub.local.server import LocalHub

__all__ = ["Fault", "Faults", "LocalHub", "Request"]
