"""What is installed is what works: the wheel, in an empty folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_templates_and_nothing_else_are_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "abl_hub/py.typed" in names
    assert "abl_hub/spaces/compare/app.py" in names
    assert any(name.startswith("abl_hub/cards/") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"abl_hub", f"abl_hub-{wheel.name.split('-')[1]}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".env")]


def test_it_runs_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    code = (
        "import abl_hub, abl_hub.resources as r; from pathlib import Path;"
        f"assert Path(abl_hub.__file__).is_relative_to({str(site)!r});"
        f"assert r.templates('cards').is_relative_to({str(site)!r});"
        f"assert (r.templates('spaces') / 'compare' / 'app.py').is_file();"
        "from abl_hub.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "abl-hub convert org/model" in done.stdout
    assert not list(empty.iterdir())
