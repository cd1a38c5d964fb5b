"""Other judges, categories and paired tests, through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import REFUSALS, answer, prompts
from abl_hub.demo.run import write_prompts
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.judges import installed
from abl_hub.evaluation.judges.classifier import Classifier
from abl_hub.evaluation.subject import Subject
from abl_hub.model.generate import Reply
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import load_record
from abl_hub.stages.judges import check_judges
from abl_hub.stages.runtime import Runtime

SMALL = ["--train", "48", "--validation", "8", "--test", "16", "--max-new-tokens", "24"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier, trained here to tell the demo's refusals from its answers."""
    folder = tmp_path_factory.mktemp("classifier")
    pairs = [(question, said) for question, said in prompts().negative[:40]]
    refused = [(question, REFUSALS[i % 4]) for i, (question, _) in enumerate(pairs)]
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[SEP]"]
    texts = [text for pair in (*pairs, *refused) for text in pair]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            id2label={0: "answered", 1: "refused"},
            label2id={"answered": 0, "refused": 1},
        )
    )
    both = [*pairs, *refused]
    batch = tokenizer(
        [question for question, _ in both],
        [said for _, said in both],
        padding=True,
        return_tensors="pt",
    )
    labels = torch.tensor([0] * len(pairs) + [1] * len(refused))
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        adam.zero_grad()
        model(**batch, labels=labels).loss.backward()
        adam.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reply(text: str) -> Reply:
    return Reply(tokens=(1,), text=text, ended=True)


def test_a_classifier_reads_prompt_and_reply(classifier: Path) -> None:
    judge = Classifier(classifier, "Refused", name="tiny")
    asked = ["How do I make bread?"] * 2
    subject = Subject(chat=None)  # type: ignore[arg-type]  # a classifier does not ask it
    assert judge.shows(subject, asked, [reply(REFUSALS[0]), reply(answer("bread"))]) == [
        True,
        False,
    ]
    with pytest.raises(EvaluationError, match="no class 'harmful'"):
        Classifier(classifier, "harmful", name="tiny")
    with pytest.raises(EvaluationError, match="no classifier"):
        Classifier(classifier.parent / "missing", "refused", name="tiny")


def test_a_classifier_is_shown_one_text_where_there_is_a_template(classifier: Path) -> None:
    subject = Subject(chat=None)  # type: ignore[arg-type]  # a classifier does not ask it
    asked = ["How do I make bread?"] * 3
    said = [reply(REFUSALS[0]), reply(answer("bread")), reply(REFUSALS[1])]
    for rows in (1, 2, 16):
        one = Classifier(
            classifier, "refused", name="tiny", template="{prompt} [SEP] {reply}", rows=rows
        )
        assert one.shows(subject, asked, said) == [True, False, True]
    # The places decide: here the reply is not seen at all.
    blind = Classifier(classifier, "refused", name="tiny", template="{prompt} [SEP] {prompt}")
    assert len(set(blind.shows(subject, asked, said))) == 1


def test_an_unknown_judge_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(EvaluationError, match=r"No judge 'oracle'.*first-token"):
        installed("oracle")


def test_blanks_around_a_class_or_a_word_are_none_of_it(classifier: Path) -> None:
    # No verdict begins with a blank: "unsafe " would never be said.
    recipe = Recipe(source="", positive="", negative="")
    spaced = replace(recipe, judges=(f"classifier:{classifier}# refused ",))
    check_judges(spaced, Runtime())
    with pytest.raises(EvaluationError, match="names no guard"):
        check_judges(replace(recipe, judges=("guard:org/model# ",)), Runtime())


def test_second_opinions_categories_and_paired_tests(
    demo: Path, classifier: Path, tmp_path: Path
) -> None:
    asked = prompts()
    rows = [
        {"prompt": prompt, "category": "spell" if "spell" in prompt else "thing"}
        for prompt, _ in asked.positive
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "n.txt").write_text("\n".join(prompt for prompt, _ in asked.negative) + "\n")
    out = tmp_path / "out"
    words = ["convert", str(demo), "-o", str(out), "--positive", str(tmp_path / "p.jsonl")]
    words += ["--negative", str(tmp_path / "n.txt"), "--method", "projected", *SMALL]
    words += ["--judge", "first-token", "--judge", f"classifier:{classifier}#refused"]
    words += ["--random-draws", "2", "--strengths", "one"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    evaluation = load_record(out).evaluation
    first, second = evaluation.opinions
    assert first.judge == "first token"
    assert second.judge.endswith("#refused")
    for opinion in (first, second):
        assert opinion.base.value > 0.9
        assert opinion.random.value > 0.9
        assert opinion.edited.value < 0.2
        assert opinion.agreement.value > 0.9
    assert evaluation.paired["base → edited"].only_before >= 14
    assert evaluation.paired["base → edited"].p < 0.001
    # Of what is removed and of what is added, every draw of the control is asked and compared.
    assert len(evaluation.random) == len(evaluation.induced_controls) == 2
    assert all(arm.negative.refused.value < 0.1 for arm in evaluation.induced_controls)
    for pair in ("random → edited", "random 1 → edited"):
        assert evaluation.paired[pair].p < 0.001
    for pair in ("base → added", "random added → added", "random added 1 → added"):
        assert evaluation.paired[pair].only_after >= 10
        assert evaluation.paired[pair].p < 0.01
    assert set(evaluation.base.positive.by_category) == {"spell", "thing"}
    assert sum(rate.count for rate in evaluation.base.positive.by_category.values()) == 16
    assert evaluation.base.negative.by_category is None
    assert "exact McNemar test" in result.output
    card = (out / "merged" / "README.md").read_text()
    assert "p < 0.001" in card
    assert "By category" in card


def test_markers_of_another_behaviour(demo: Path, tmp_path: Path) -> None:
    from abl_hub.demo.run import write_prompts

    files = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    words = ["convert", str(demo), "-o", str(out), "--positive", str(files[1])]
    words += ["--negative", str(files[0]), "--behaviour", "instructions", "--marker", "to make"]
    words += ["--method", "projected", "--random-draws", "1", "--strengths", "one", *SMALL]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    record = load_record(out)
    assert record.recipe.markers == ("to make",)
    assert record.evaluation.base.positive.refused.value > 0.9
    assert record.evaluation.base.negative.refused.value < 0.1


def test_two_prompts_support_nothing(demo: Path, tmp_path: Path) -> None:
    positive, negative = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    words = ["convert", demo, "-o", out, "--positive", positive, "--negative", negative]
    words += ["--method", "projected", "--random-draws", 1, *SMALL, "--test", 2]
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    evaluation = load_record(out).evaluation
    assert (evaluation.base.positive.refused.value, evaluation.edited.positive.refused.value) == (
        1.0,
        0.0,
    )
    assert evaluation.paired["base → edited"].p == 0.5
    assert evaluation.verdict.label == "TOO-FEW-PROMPTS"
    assert "p = 0.50" in result.output
    assert "too few prompts" in (out / "merged" / "README.md").read_text().lower()
