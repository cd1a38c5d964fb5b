"""`apply` where there are forms already: they stay until the new ones are whole and checked."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from abl_hub.cli.group import abl_hub as command
from abl_hub.errors import EditError, OutputError
from abl_hub.progress import Advance, Silent
from abl_hub.report.record import Record, load_record
from abl_hub.stages import replacing
from abl_hub.stages.apply import apply
from abl_hub.stages.runtime import Runtime
from tests.chat_models import save_chat_model, save_prompts


@pytest.fixture(scope="module", params=[[], ["--induce"]], ids=["removal", "addition"])
def applied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("applied")
    model = save_chat_model(folder / "model")
    positive, negative = save_prompts(folder)
    sizes = ["--train", "16", "--validation", "4", "--test", "4", "--strengths", "one"]
    words = ["extract", model, "-o", folder / "out", "--positive", positive, "--negative", negative]
    result = CliRunner().invoke(command, [*map(str, words), *sizes, *request.param])
    assert result.exit_code == 0, result.output
    apply(folder / "out", Runtime())
    return folder / "out"


@pytest.fixture
def out(applied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(applied, tmp_path / "out"))


class Interrupting(Silent):
    """Ctrl-C when a stage of this name begins."""

    def __init__(self, at: str, error: BaseException) -> None:
        self.at, self.error = at, error

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        if name.startswith(self.at):
            raise self.error
        with super().stage(name, total) as advance:
            yield advance


def _files(out: Path) -> dict[str, str]:
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def _as_recorded(out: Path) -> None:
    """Every form of the record is there, file by file."""
    record = load_record(out)
    for name in ("merged", "delta"):
        form = getattr(record, name)
        found = {} if form is None else {file.path: file.sha256 for file in form.files}
        assert {path: _files(out / name).get(path) for path in found} == found


@pytest.mark.parametrize("at", ["Writing the checkpoint", "Comparing"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), EditError("The forms disagree")])
def test_what_does_not_come_to_its_end_changes_nothing(
    at: str, error: BaseException, out: Path
) -> None:
    before = _files(out)
    with pytest.raises(type(error)):
        apply(out, Runtime(progress=Interrupting(at, error)))
    assert _files(out) == before
    _as_recorded(out)


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_killed_while_forms_change_places_it_says_so(
    after: int, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each of its steps: two of the record, four of the folders."""
    steps = 0

    def step() -> None:
        nonlocal steps
        if steps == after:
            raise KeyboardInterrupt
        steps += 1

    def save(record: Record, folder: Path) -> None:
        step()
        save_record(record, folder)

    def rename(path: Path, target: Path) -> Path:
        if path.name in ("merged", "delta"):
            step()
        return rename_path(path, target)

    save_record, rename_path = replacing.save_record, Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(replacing, "save_record", save)
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            apply(out, Runtime())
    _as_recorded(out)
    record = load_record(out)
    assert (record.agreement is None) == (after > 0)
    assert apply(out, Runtime()).agreement is not None
    _as_recorded(out)


def test_two_at_once_do_not_share_a_folder(out: Path) -> None:
    before = _files(out)
    with replacing.making_forms(out) as made:
        (made / "merged").mkdir()
        with pytest.raises(OutputError, match="Another process is making"):
            apply(out, Runtime())
        assert (made / "merged").is_dir()
    assert _files(out) == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_of_ours_is_left(kind: str, out: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "letter.txt").write_text("dear")
    place = out / replacing.MAKING
    place.write_text("mine") if kind == "file" else place.symlink_to(theirs)
    with pytest.raises(OutputError, match="cannot be made"):
        apply(out, Runtime())
    assert (theirs / "letter.txt").read_text() == "dear"
    assert place.is_symlink() == (kind == "link")


def test_whoever_may_read_the_folder_may_read_its_files(out: Path, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    modes = {str(file): file.stat().st_mode for file in out.rglob("*") if file.is_file()}
    assert modes == dict.fromkeys(modes, usual.stat().st_mode)
