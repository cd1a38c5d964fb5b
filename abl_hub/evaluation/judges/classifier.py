"""A text classifier as a judge: a guard model or a refusal classifier, given prompt and reply.

Knows a folder with a sequence classification model of transformers; not where it came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
)

from abl_hub.errors import AblHubError, EvaluationError
from abl_hub.evaluation.judges.shown import filled
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply
from abl_hub.model.meta import read_config

_MOST_TOKENS = 512


class Classifier:
    """A classifier that reads "prompt, reply" as a pair of texts, or as one text.

    Args:
        folder: of the model, as safetensors; no code of its repository is run.
        label: the class that means "shows the behaviour", by name.
        name: as it is shown in tables.
        template: the one text, with {prompt} and {reply}; None is a pair.
        rows: replies a batch.

    Raises:
        EvaluationError: it cannot be loaded, or has no such class.
    """

    def __init__(
        self, folder: Path, label: str, *, name: str, template: str | None = None, rows: int = 16
    ) -> None:
        self.name, self.template = name, template
        with _loading(name):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        self.label = _class_index(self.model.config, label, name=name)
        # A decoder's classifier reads the last token that is no padding. Where tokenizer and model
        # do not know one padding token between them, rows are read one by one, which needs none.
        padding = self.tokenizer.pad_token_id
        known = self.model.config.get_text_config().pad_token_id
        self.rows = rows if padding is not None and padding == known else 1

    @torch.inference_mode()
    def shows(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[Reply]
    ) -> list[bool]:
        """Whether the class is the likeliest, or likelier than not where it stands alone."""
        found: list[bool] = []
        for start in range(0, len(prompts), self.rows):
            batch = self.tokenizer(
                *self._texts(prompts[start:][: self.rows], replies[start:][: self.rows]),
                padding=self.rows > 1,
                truncation=True,
                max_length=_MOST_TOKENS,
                return_tensors="pt",
            )
            found += self._shown(self.model(**batch).logits).tolist()
        return found

    def _texts(self, prompts: Sequence[str], replies: Sequence[Reply]) -> tuple[list[str], ...]:
        """What the tokenizer reads: one list of texts, or two for pairs."""
        if self.template is None:
            return list(prompts), [reply.text for reply in replies]
        pairs = zip(prompts, replies, strict=True)
        return ([filled(self.template, prompt, reply.text) for prompt, reply in pairs],)

    def _shown(self, logits: torch.Tensor) -> torch.Tensor:
        """(rows, classes) → (rows,), as the pipeline of transformers reads the model."""
        config, alone = self.model.config, logits[:, self.label]
        if config.problem_type == "regression":
            return alone > 0.5
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return alone.sigmoid() > 0.5
        return alone.eq(logits.amax(-1))


def check_class(folder: Path, label: str, *, name: str) -> None:
    """Refuse what `Classifier` would, of a folder without its weights.

    Raises:
        EvaluationError: its configuration cannot be loaded, or names no such class.
    """
    with _loading(name):
        config = read_config(folder)
    _class_index(config, label, name=name)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, AblHubError) as error:
        raise EvaluationError(
            f"{name} is no classifier that transformers can load",
            why=str(error).strip().splitlines()[0],
        ) from error


def _class_index(config: PretrainedConfig, label: str, *, name: str) -> int:
    """The class called `label`, in whatever case."""
    labels = {str(text).casefold(): int(at) for text, at in (config.label2id or {}).items()}
    if label.casefold() not in labels:
        raise EvaluationError(
            f"{name} has no class {label!r}", next_step=f"Choose of {', '.join(labels)}"
        )
    return labels[label.casefold()]
