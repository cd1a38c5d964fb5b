"""An output as it would be of a base on the Hub, which only such an output has a Space of."""

from __future__ import annotations

import json
from pathlib import Path

from abl_hub.hub.local import LocalHub
from abl_hub.hub.publish import publish


def on_hub(out: Path, hub: LocalHub, name: str = "wand") -> Path:
    """Publish the base of `out`, and write the record of a run on that."""
    record = json.loads((out / "record.json").read_text())
    base = publish(
        Path(record["recipe"]["source"]),
        repo_id=f"{hub.user}/{name}",
        kind="model",
        token=hub.token,
        endpoint=hub.endpoint,
        commit_message="the base",
    )
    record["recipe"]["source"] = base.repo
    record["source"].update(name=base.repo, repo=base.repo, commit=base.commit)
    (out / "record.json").write_text(json.dumps(record))
    return out
