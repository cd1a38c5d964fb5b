"""`python -m abl_hub`: the command line, where the console script is not on the path."""

from __future__ import annotations

from abl_hub.cli import main

if __name__ == "__main__":
    main()
