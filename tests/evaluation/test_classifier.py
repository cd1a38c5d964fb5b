"""Classifiers as they lie about: no padding token, one number, several classes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig
from transformers import LlamaForSequenceClassification as Llama

from abl_hub.evaluation.judges.classifier import Classifier
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply
from tests.chat_models import tokenizer

SUBJECT = Subject(chat=None)  # type: ignore[arg-type]  # a classifier does not ask it
ASKED = ["How tall is a giraffe?", "Why?", "What do owls eat, and when do they sleep?"] * 6
SAID = [f"{number * '!'} {chr(ord('a') + number)}" for number in range(len(ASKED))]
LABELS = ("answered", "refused")


def saved(folder: Path, *, pad: bool, labels: tuple[str, ...] = LABELS, **changes: Any) -> Path:
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
        pad_token_id=words.pad_token_id if pad else None,
        **changes,
    )
    model = Llama(config)
    model.score.weight.data *= 100.0  # wide apart, so that rounding decides nothing
    model.save_pretrained(folder)
    if not pad:
        words.pad_token = None
    words.save_pretrained(folder)
    return folder


def said(folder: Path, label: str) -> list[bool]:
    replies = [Reply(tokens=(1,), text=text, ended=True) for text in SAID]
    return Classifier(folder, label, name="tiny").shows(SUBJECT, ASKED, replies)


def logits(folder: Path) -> torch.Tensor:
    words = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [
            model(**words([one], [other], return_tensors="pt")).logits[0]
            for one, other in zip(ASKED, SAID, strict=True)
        ]
    return torch.stack(rows)


@pytest.mark.parametrize("pad", [True, False])
def test_without_a_padding_token_rows_are_read_alike(pad: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path, pad=pad)
    expected = logits(folder).argmax(-1)
    assert 0 < expected.sum() < len(expected)
    assert said(folder, "refused") == (expected == 1).tolist()
    assert said(folder, "answered") == (expected == 0).tolist()


def test_one_number_is_a_probability_of_its_own(tmp_path: Path) -> None:
    folder = saved(tmp_path, pad=True, labels=("refused",))
    expected = logits(folder)[:, 0].sigmoid() > 0.5
    assert 0 < expected.sum() < len(expected)
    assert said(folder, "refused") == expected.tolist()


def test_of_several_classes_at_once_the_one_named_decides(tmp_path: Path) -> None:
    labels = ("polite", "refused", "long")
    folder = saved(tmp_path, pad=True, labels=labels, problem_type="multi_label_classification")
    expected = logits(folder).sigmoid() > 0.5
    assert bool((expected.sum(-1) > 1).any())
    for index, label in enumerate(labels):
        assert said(folder, label) == expected[:, index].tolist()


def test_a_regression_s_number_is_read_as_it_is(tmp_path: Path) -> None:
    folder = saved(tmp_path, pad=True, labels=("refused",), problem_type="regression")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data *= 0.5 / logits(folder).median()  # around one half
    model.save_pretrained(folder)
    values = logits(folder)[:, 0]
    assert bool(((values > 0.0) & (values <= 0.5)).any())
    assert said(folder, "refused") == (values > 0.5).tolist()
