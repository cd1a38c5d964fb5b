"""Basic hygiene of text files, for pre-commit: names each file and line that breaks it."""

from __future__ import annotations

import sys
from pathlib import Path

_LARGEST_BYTES = 500_000


def complaints(path: Path) -> list[str]:
    """What is wrong with one file."""
    content = path.read_bytes()
    found = []
    if len(content) > _LARGEST_BYTES:
        found.append(f"{path}: larger than {_LARGEST_BYTES} bytes")
    if content and not content.endswith(b"\n"):
        found.append(f"{path}: no newline at the end")
    if content.endswith(b"\n\n"):
        found.append(f"{path}: empty lines at the end")
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.startswith((b"<<<<<<< ", b">>>>>>> ")):
            found.append(f"{path}:{number}: merge conflict")
        if line != line.rstrip(b" \t\r"):
            found.append(f"{path}:{number}: trailing whitespace")
        if b"\t" in line:
            found.append(f"{path}:{number}: tab")
    return found


if __name__ == "__main__":
    found = [line for name in sys.argv[1:] for line in complaints(Path(name))]
    if found:
        print("\n".join(found))
    sys.exit(bool(found))
