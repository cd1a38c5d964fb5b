"""A text classifier as a judge: a guard model or a refusal classifier, given prompt and reply.

Knows a folder with a sequence classification model of transformers; not where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply

_ROWS = 16
_MOST_TOKENS = 512


class Classifier:
    """A classifier that reads "prompt, reply" as a pair of texts.

    Args:
        folder: of the model, as safetensors; no code of its repository is run.
        label: the class that means "shows the behaviour", by name.
        name: as it is shown in tables.

    Raises:
        EvaluationError: it cannot be loaded, or has no such class.
    """

    def __init__(self, folder: Path, label: str, *, name: str) -> None:
        self.name = name
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            raise EvaluationError(
                f"{name} is no classifier that transformers can load",
                why=str(error).strip().splitlines()[0],
            ) from error
        labels = {str(text).casefold(): index for text, index in self.model.config.label2id.items()}
        if label.casefold() not in labels:
            raise EvaluationError(
                f"{name} has no class {label!r}", next_step=f"Choose of {', '.join(labels)}"
            )
        self.label = labels[label.casefold()]

    @torch.inference_mode()
    def shows(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[Reply]
    ) -> list[bool]:
        """Whether the class is the likeliest."""
        found: list[bool] = []
        for start in range(0, len(prompts), _ROWS):
            batch = self.tokenizer(
                list(prompts[start : start + _ROWS]),
                [reply.text for reply in replies[start : start + _ROWS]],
                padding=True,
                truncation=True,
                max_length=_MOST_TOKENS,
                return_tensors="pt",
            )
            best = self.model(**batch).logits.argmax(-1)
            found += (best == self.label).tolist()
        return found
