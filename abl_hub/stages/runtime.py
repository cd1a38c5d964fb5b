"""Runtime choices: what must not change the artifact. Tokens live here and never leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from abl_hub.errors import SourceError
from abl_hub.model.crew import ALONE, Crew
from abl_hub.progress import SILENT, Progress

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a run happens.

    Args:
        device: torch device, or "auto" to spread the model over what there is.
        rows: prompts a batch.
        memory: bytes that a loaded model may take; None asks the machine.
        cache_dir: of the Hub client; None is its own default.
        token: Hub token; None lets the client find its own.
        endpoint: Hub address; None is the client's default.
        progress: where progress is shown.
        crew: the processes that read activations together.
        called: told when the others are needed (`abl_hub.stages.crew`).
        trust_remote_code: run Python of the model's repository. Whoever runs this says so; a
            record, which may be a stranger's, says only that it is needed.

    Raises:
        SourceError: there is no such device here.
    """

    device: str = "cpu"
    rows: int = 32
    memory: int | None = None
    cache_dir: Path | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    progress: Progress = SILENT
    crew: Crew = ALONE
    called: Callable[[], None] = field(default=lambda: None, repr=False)
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.device != "auto":
            check_device(self.device)


def check_device(name: str) -> None:
    """Refuse a device that no model can be put on.

    Raises:
        SourceError: torch does not know it, it is not there, or it holds no numbers.
    """
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise SourceError(
            f"There is no device {name!r} here",
            why="PyTorch knows none of that name"
            if "device type at start" in str(error)
            else str(error).partition("\n")[0].partition(". ")[0],
            next_step="Give cpu, or one of this machine's, as cuda:0",
        ) from error


def dtype_named(name: str | None) -> torch.dtype | None:
    """The torch dtype called `name`; None stays None.

    Raises:
        SourceError: there is no such dtype here.
    """
    if name is None:
        return None
    if name not in _DTYPES:
        raise SourceError(f"No dtype {name!r}", next_step=f"Choose one of {', '.join(_DTYPES)}")
    return _DTYPES[name]
