"""The verdict rests on every draw of the random control, not on the first or on their mean."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from abl_hub.demo.corpus import prompts
from abl_hub.directions.contrast import SplitSizes, make_contrast
from abl_hub.directions.means import mean_activations
from abl_hub.directions.methods.difference import difference_in_means
from abl_hub.directions.methods.projected import without
from abl_hub.evaluation.arms import Protocol
from abl_hub.evaluation.bench import Questions
from abl_hub.evaluation.evaluate import evaluate
from abl_hub.evaluation.subject import Subject
from abl_hub.model.chat import load_chat_model
from abl_hub.model.stream import ablating, adding


def test_one_draw_that_does_as_much_is_enough_to_doubt(demo: Path) -> None:
    chat = load_chat_model(demo)
    positive, negative = ([prompt for prompt, _ in side] for side in
                          (prompts().positive, prompts().negative))  # fmt: skip
    sizes = SplitSizes(train=16, validation=4, test=10)
    contrast = make_contrast(positive, negative, sizes=sizes)
    means = mean_activations(chat, contrast)
    found = without(difference_in_means(means), means.negative.activations)[4, -1]
    base = Subject(chat=chat)
    edited = Subject(
        chat=chat, active=partial(ablating, chat.layers, (found / found.norm())[None].float())
    )
    added = Subject(chat=chat, active=partial(adding, chat.layers, 4, found))
    ask = partial(
        evaluate,
        Questions(positive=contrast.positive.test, negative=contrast.negative.test, references={}),
        base=base,
        edited=edited,
        induced=added,
        protocol=Protocol(max_new_tokens=6),
    )
    clean = ask(random=[base, base], induced_random=[base, base])
    assert clean.verdict.label == "SUPPORTED"
    assert clean.paired["random 1 → edited"] == clean.paired["random → edited"]
    doubtful = ask(random=[base, edited], induced_random=[base, base])
    assert doubtful.paired["random → edited"].p < 0.01 < doubtful.paired["random 1 → edited"].p
    assert doubtful.verdict.label == "NOT-SEPARATED-FROM-RANDOM"
    half = ask(random=[base, base], induced_random=[base, added])
    assert half.verdict.label == "SUPPRESSION-ONLY"
    assert len(half.induced_controls) == 2
