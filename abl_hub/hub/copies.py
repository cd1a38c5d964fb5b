"""Files of another repository that the Hub can copy by itself, so that nobody has to send them.

Whether it can is asked, file by file, and answered by the Hub: it can where both repositories lie
in its chunked storage (Xet) and in one region, and the token may read one and write the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import CommitOperationCopy
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from abl_hub.hub.repository import Repository
from abl_hub.progress import SILENT, Progress

_CANNOT = (400, 403, 404, 405, 422, 501)
"""What a Hub answers that does not copy between these two repositories."""


class Origin:
    """A model repository at one commit, as a source of copies into `target`.

    Args:
        repo, commit: where the files are.
        target: where they are to go; it must exist when `copy` is called.
        progress: told once if the Hub does not copy.
    """

    def __init__(
        self, repo: str, commit: str, *, target: Repository, progress: Progress = SILENT
    ) -> None:
        self.repo, self.commit, self.target, self.progress = repo, commit, target, progress
        self._files: Mapping[str, RepoFile] | None = None
        self._refused = False

    def copy(self, path: str, *, sha256: str, size: int) -> CommitOperationCopy | None:
        """Have the Hub copy a file, if it can; None: send it.

        Afterwards the target's storage has the content, and a commit of the operation shows it.
        The file has the same path in both repositories.

        Raises:
            HfHubHTTPError: the Hub failed, rather than refused.
        """
        if self._refused:
            return None
        try:
            found = self._listed().get(path)
            if found is None or found.lfs is None:
                return None
            if (found.lfs.sha256, found.size) != (sha256, size):
                return None
            reason = self._ask(path, sha256)
        except HfHubHTTPError as error:
            if error.response.status_code not in _CANNOT:
                raise
            reason = error.server_message or f"HTTP {error.response.status_code}"
        if reason is not None:
            self._refused = True
            self.progress.note(
                f"The Hub does not copy from {self.repo} to {self.target.name} ({reason}): "
                "unchanged files are uploaded"
            )
            return None
        return CommitOperationCopy(
            path, path, src_revision=self.commit, src_repo_id=self.repo, src_repo_type="model"
        )

    def _listed(self) -> Mapping[str, RepoFile]:
        if self._files is None:
            listed = self.target.api.list_repo_tree(self.repo, recursive=True, revision=self.commit)
            self._files = {file.path: file for file in listed if isinstance(file, RepoFile)}
        return self._files

    def _ask(self, path: str, sha256: str) -> str | None:
        """Let the Hub duplicate one object; why it does not, or None."""
        api = self.target.api
        (found,) = api.get_paths_info(self.repo, [path], revision=self.commit)
        if not isinstance(found, RepoFile) or found.xet_hash is None:
            return "the base is not in its chunked storage"
        token = api.token if isinstance(api.token, str) else None
        answer = get_session().post(
            f"{api.endpoint}/api/models/{self.repo}/lfs-files/duplicate",
            headers=build_hf_headers(token=token),
            json={
                "target": {"type": self.target.kind, "name": self.target.name},
                "files": [{"xetHash": found.xet_hash, "sha256": sha256, "filename": path}],
            },
        )
        hf_raise_for_status(answer)
        failed = answer.json().get("failed", [])
        return str(failed[0].get("error")) if failed else None
