"""Cards from a record: true metadata, and what a reader has to be told."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from abl_hub.cli.asked import recipe_of
from abl_hub.cli.convert import convert
from abl_hub.directions.contrast import SplitSizes
from abl_hub.errors import EvaluationError, SourceError
from abl_hub.evaluation.arms import SystemArms
from abl_hub.report.card import render_card
from abl_hub.report.plots import candidates_plot, deltas_plot
from abl_hub.report.recipe import Recipe
from abl_hub.report.record import Record, load_record, save_record
from abl_hub.report.reproduce import reproduce
from abl_hub.report.space_card import render_space_card, space_config


@pytest.mark.parametrize(
    ("kind", "relation", "library"),
    [("merged", "finetune", "transformers"), ("delta", "adapter", "peft")],
)
def test_metadata_as_the_hub_reads_it(
    record: Record, kind: str, relation: str, library: str
) -> None:
    text = render_card(record, kind, repo="me/model-x", related={})  # type: ignore[arg-type]
    data = ModelCard(text).data
    assert data.base_model == "org/model"
    assert data.base_model_relation == relation
    assert data.library_name == library
    assert data.license == "apache-2.0"
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["refusal rate"] == 0.01
    front = yaml.safe_load(text.split("---\n")[1])
    assert yaml.safe_load(yaml.safe_dump(front)) == front


def test_the_card_says_what_it_must(record: Record) -> None:
    text = render_card(record, "merged", repo="me/x", related={"delta": "me/d"})
    for needed in (
        "SUPPORTED",
        "0.98 [",
        "0.01 [",
        "0.97 [",
        "safeguard",
        "f" * 40,
        "me/d",
        "arditi2024refusal",
        "1.0e-06",
    ):
        assert needed in text


def test_another_system_prompt_is_told(record: Record) -> None:
    evaluation = record.evaluation
    assert evaluation is not None
    arms = SystemArms(condition="none", base=evaluation.base, edited=evaluation.edited)
    given = replace(
        record,
        recipe=replace(record.recipe, system="Be kind."),
        evaluation=replace(evaluation, system_arms=arms),
    )
    text = render_card(given, "merged", repo="me/x", related={})
    assert "**System prompt.** Without a system prompt, refusal goes from 0.98 [" in text
    assert "Be kind." not in text


def test_titles_name_what_the_card_is_of(record: Record) -> None:
    titles = {
        kind: next(
            line
            for line in render_card(record, kind, repo=None, related={}).splitlines()
            if line[:2] == "# "
        )
        for kind in ("merged", "delta", "direction")
    }
    assert titles == {
        "merged": "# model-abliterated",
        "delta": "# model-abliterated-delta",
        "direction": "# model: the refusal direction",
    }
    assert "\n\n## Limits" in render_card(record, "merged", repo=None, related={})


def test_no_evaluation_no_card(record: Record) -> None:
    with pytest.raises(EvaluationError, match="no evaluation"):
        render_card(replace(record, evaluation=None), "merged", repo=None, related={})


def test_a_record_with_one_form_has_its_cards(record: Record) -> None:
    only_delta = replace(record, merged=None)
    assert "adapter" in render_card(only_delta, "delta", repo="me/d", related={})
    assert "dataset" in render_card(only_delta, "direction", repo="me/v", related={})
    with pytest.raises(EvaluationError, match="no merged form"):
        render_card(only_delta, "merged", repo="me/m", related={})
    assert "weights" in render_card(replace(record, delta=None), "merged", repo="m/m", related={})


@pytest.mark.parametrize(
    ("method", "cited"), [("som", "piras2025som"), ("leace", "belrose2023"), ("pca", "zou2023")]
)
def test_only_the_methods_used_are_cited(record: Record, method: str, cited: str) -> None:
    used = replace(record, direction=replace(record.direction, method=method, rank=2))
    text = render_card(used, "merged", repo="me/x", related={})
    assert cited in text
    assert cited not in render_card(record, "merged", repo="me/x", related={})
    assert "2 directions" in text


def test_a_direction_is_a_dataset_of_one(record: Record) -> None:
    data = DatasetCard(render_card(record, "direction", repo="me/v", related={})).data
    assert data.license == "apache-2.0"
    assert data.size_categories == ["n<1K"]
    assert "base_model" not in data.to_dict()


def test_the_command_of_a_card_makes_the_same_recipe(record: Record) -> None:
    asked = Recipe(
        source="org/model",
        revision="main",
        positive="org/prompts:train#text",
        negative="org/others:train#text",
        sizes=SplitSizes(train=8, validation=4, test=4),
        behaviour="two words",
        methods=("svd", "som"),
        rank=2,
        strengths="fit",
        budget=3,
        strength=0.5,
        layers=(1, 3),
        seed=7,
        dtype="bfloat16",
        rounding="cancelling",
        delta_profile="portable",
        max_new_tokens=16,
        random_draws=1,
        trust_remote_code=True,
    )
    words = shlex.split(" ".join(reproduce(replace(record, recipe=asked))))
    assert words[:2] == ["abl-hub", "convert"]
    context = convert.make_context("convert", words[2:])
    known = {field.name for field in fields(Recipe)} | {"train", "validation", "test"}
    options = {name: context.params[name] for name in known - {"source", "sizes"}}
    assert recipe_of(context.params["source"], options) == replace(
        asked,
        revision="f" * 40,
        positive=f"org/prompts@{'c' * 40}:train#text",
        negative=f"org/others@{'c' * 40}:train#text",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positive": "~/my/data.csv#ask"}, ["--positive", "data.csv#ask"]),
        ({"positive": "./a.txt + b/c.jsonl#q"}, ["--positive", "a.txt + c.jsonl#q"]),
        (
            {"response_prefix": "<think>\n  it's \\n \u202e\u00a0</think>\n\n"},
            ["--response-prefix", "<think>\n  it's \\n \u202e\u00a0</think>\n\n"],
        ),
        ({"behaviour": "two  words `$x`"}, ["--behaviour", "two  words `$x`"]),
        ({"system": ""}, ["--system", ""]),
        ({"system": "Be brief."}, ["--system", "SYSTEM_PROMPT"]),
        ({"test_sets": ("xstest",)}, ["--test-set", "xstest"]),
        ({"test_sets": ("refusal:my/own.csv#q",)}, ["--test-set", "refusal:own.csv#q"]),
    ],
)
def test_bash_reads_the_command_of_a_card_as_it_was_given(
    record: Record, changes: dict[str, Any], words: list[str]
) -> None:
    asked = replace(
        record,
        recipe=replace(record.recipe, **changes),
        positive=replace(record.positive, revision=None, split=None),
    )
    (block,) = re.findall(
        r"```sh\n(abl-hub convert.*?)\n```",
        render_card(asked, "merged", repo="me/x", related={}),
        re.DOTALL,
    )
    told = subprocess.run(
        ["bash", "-c", f"abl-hub() {{ printf '%s\\0' \"$@\"; }}; {block}"],
        env={"LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    given = told.stdout.decode().split("\0")
    at = given.index(words[0])
    assert given[at : at + 2] == words


def test_a_record_survives_the_disk_and_a_foreign_one_is_refused(
    record: Record, tmp_path: Path
) -> None:
    path = save_record(record, tmp_path)
    assert load_record(tmp_path) == record
    for old, new in (
        (b'"schema": 1', b'"schema": 2'),
        (b'"rank": 1', b'"rank": "one"'),
        (b"{", b""),
    ):
        path.write_bytes(save_record(record, tmp_path).read_bytes().replace(old, new, 1))
        with pytest.raises(SourceError, match=r"schema|not a record"):
            load_record(tmp_path)


def test_plots_are_pictures_and_repeatable(record: Record, tmp_path: Path) -> None:
    for plot in (candidates_plot, deltas_plot):
        for name in ("one.png", "two.png"):
            plot(record, tmp_path / name)
        first = (tmp_path / "one.png").read_bytes()
        assert first == (tmp_path / "two.png").read_bytes()
        assert first.startswith(b"\x89PNG")
        assert len(first) < 150_000


def test_the_space_is_told_what_it_needs(record: Record) -> None:
    config = space_config(record, base="org/model", delta="me/delta")
    assert config["base_revision"] == "f" * 40
    assert [
        config["metrics"][0][key].split(" [")[0] for key in ("name", "base", "edited", "random")
    ] == ["refusal, prompts that show it", "0.98", "0.01", "0.97"]
    readme = render_space_card(record, related={"delta": "me/delta"})
    front = yaml.safe_load(readme.split("---\n")[1])
    assert front["sdk"] == "gradio"
    assert front["models"] == ["org/model", "me/delta"]


def test_a_multimodal_base_s_card_says_what_was_left(record: Record) -> None:
    assert record.edit is not None
    wrapper = replace(record.edit, language_path_of="LlavaForConditionalGeneration")
    text = render_card(
        replace(record, edit=wrapper), "merged", repo="me/model", related={}, notices=(), duties=()
    )
    assert "only the language path is edited" in text
    plain = render_card(record, "merged", repo="me/model", related={}, notices=(), duties=())
    assert "language path" not in plain
