"""What a streamed push has done so far, kept beside the output until all of it is done.

`OUT.streaming` holds the list of shards that the Hub was sent, and the source shard that was at
hand. It goes when the stream ends well; after a failure the next push goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from abl_hub.edits.checkpoint import WrittenFile
from abl_hub.errors import OutputError

_JOURNAL = "journal.json"


@contextmanager
def streaming_folder(out: Path) -> Iterator[Path]:
    """`OUT.streaming`: removed when the block ends well, kept when it does not.

    Raises:
        OutputError: something else lies there, or it cannot be made.
    """
    home = out.resolve()  # "." has no name
    folder = home.with_name(f"{home.name}.streaming")
    if folder.exists() and not (folder / _JOURNAL).is_file() and not _is_empty(folder):
        raise OutputError(
            f"{folder} was not made by a streamed push", next_step="Remove it, or move it away"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made", why=str(error.strerror)) from error
    yield folder
    shutil.rmtree(folder)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


class Journal:
    """Which shards of one edit were made and sent.

    Args:
        folder: of the stream.
        identity: of everything that decides the bytes; another journal's entries are forgotten.
        known: files of an earlier push of the same record.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, str], known: Iterable[WrittenFile] = ()
    ) -> None:
        self.file, self.identity = folder / _JOURNAL, dict(identity)
        self.sent = {file.path: file for file in known}
        self._own: dict[str, WrittenFile] = {}
        if self.file.is_file():
            try:
                held = json.loads(self.file.read_bytes())
                if held["identity"] == self.identity:
                    self._own = {one["path"]: WrittenFile(**one) for one in held["sent"]}
            except (ValueError, KeyError, TypeError):
                pass  # damaged: as good as another edit's
        self.sent |= self._own
        self._save()

    def add(self, file: WrittenFile) -> None:
        """Note that the Hub has a shard."""
        self.sent[file.path] = self._own[file.path] = file
        self._save()

    def _save(self) -> None:
        content = {
            "identity": self.identity,
            "sent": [asdict(file) for file in self._own.values()],
        }
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)
