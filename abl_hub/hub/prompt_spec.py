"""How prompt sets are spelled: names, files, data sets of the Hub, and several of them together.

Knows spellings, and which of them are files that are there; reads no prompt.
"""

from __future__ import annotations

import re
from pathlib import Path

from abl_hub.hub.data_sets import DATA_SUFFIXES
from abl_hub.hub.named_sets import NAMED_SETS

AND = " + "
"""Between sets that are put together."""
APART = " | "
"""Between what is to train, to validate and to test on."""
PARTS = ("train", "validation", "test")

_HUB_SPEC = re.compile(
    r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)"
    r"(@(?P<revision>[^:#?]+))?"
    r"(:((?P<config>[\w.-]+)/)?(?P<split>[\w.-]+))?"
    r"(#(?P<column>[^?]+))?"
    r"(\?(?P<where>[^=]+=.*))?"
)


def local_files(spec: str) -> tuple[Path, ...]:
    """The files of `spec`, there or not; the Hub's data sets are left out."""
    found = ((part, file_of(part)) for part in _every_part(spec))
    return tuple(
        file[0] if file else Path(part.partition("#")[0]).expanduser()
        for part, file in found
        if file or not hub_spec(part)
    )


def with_absolute_files(spec: str) -> str:
    """`spec` with the absolute paths of its files."""

    def absolute(part: str) -> str:
        found = None if part in NAMED_SETS else file_of(part)
        if found is None:
            return part
        column = f"#{found[1]}" if found[1] else ""
        return f"{found[0].absolute()}{column}"

    return APART.join(AND.join(map(absolute, joined(portion))) for portion in portions(spec))


def is_local(spec: str) -> bool:
    """Whether `spec` names files only, so that loading it asks nobody."""
    return len(local_files(spec)) == len(_every_part(spec))


def _every_part(spec: str) -> list[str]:
    """Every file and data set that `spec` names, by itself or through names of sets."""
    if spec in NAMED_SETS:
        return _every_part(NAMED_SETS[spec])
    parts = [part for portion in portions(spec) for part in joined(portion)]
    return [one for part in parts for one in (_every_part(part) if part in NAMED_SETS else [part])]


def portions(spec: str) -> list[str]:
    """What " | " sets apart: training, validation and test prompts; or all of `spec`.

    Names of files and values behind "?" may hold it too.
    """
    found = spec.split(APART)
    named = all(_names(part) for portion in found for part in joined(portion))
    return found if len(found) == len(PARTS) and named and not file_of(spec) else [spec]


def _names(part: str) -> bool:
    """Whether `part` may be the name of a set, a file or a data set."""
    path = part.partition("#")[0]
    found = part in NAMED_SETS or file_of(part) or hub_spec(part) or path.endswith(DATA_SUFFIXES)
    return bool(found)


def joined(spec: str) -> list[str]:
    """What " + " joins; names of files and values behind "?" may hold it too."""
    parts: list[str] = []
    for piece in spec.split(AND):
        longer = AND.join((*parts[-1:], piece))
        own = piece in NAMED_SETS or file_of(piece) or hub_spec(piece)
        if parts and (file_of(longer) or (not own and "?" in parts[-1] and hub_spec(longer))):
            parts[-1] = longer
        else:
            parts.append(piece)
    return [spec] if file_of(spec) else parts


def file_of(spec: str) -> tuple[Path, str | None] | None:
    """The file that `spec` names, and the column; None where there is no such file."""
    path, _, column = spec.rpartition("#")
    # A column's name holds no " + ": what follows is the next file.
    for name, asked in ((spec, None), *(() if AND in column else ((path, column or None),))):
        try:
            file = Path(name).expanduser()
            if file.is_file():
                return file, asked
        except (OSError, ValueError, RuntimeError):  # no name of a file, or nobody's home
            continue
    return None


def is_folder(spec: str) -> bool:
    """Whether `spec` names a folder that is there."""
    try:
        return Path(spec).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # no name of a file, or nobody's home
        return False


def hub_spec(spec: str) -> re.Match[str] | None:
    """The parts of a data set's name; None where it can only be a file."""
    match = _HUB_SPEC.fullmatch(spec)
    return None if match and match["repo"].endswith(DATA_SUFFIXES) else match
