"""What `analyse` and `probe` say of the demo model, whose behaviour is one direction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.direction import Direction
from abl_hub.evaluation.detector import auc
from abl_hub.model.chat import load_chat_model
from abl_hub.model.heads import attribute
from abl_hub.model.trace import trace_writers
from abl_hub.report.record import load_record

SUFFIX = "in one word"


def run(*words: object) -> Result:
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def extracted(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("science")
    files = write_prompts(prompts(), folder)
    asked = ["--positive", files[0], "--negative", files[1], "--method", "projected"]
    sizes = ["--train", 64, "--validation", 12, "--test", 40]
    run("extract", demo, "-o", folder / "out", *asked, *sizes)
    run("analyse", folder / "out", "--dose", "0,1", "--seeds", 3)
    return folder / "out"


def test_the_projection_detects_the_behaviour_and_a_random_one_does_not(extracted: Path) -> None:
    record = load_record(extracted)
    detection = record.analysis.detection
    assert [found.layer for found in detection] == list(range(record.direction.layer_count))
    found = detection[record.direction.layer].detector
    assert found.auc.value > 0.95
    assert found.accuracy.low > 0.85
    assert detection[0].detector.auc.value < found.auc.value
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 40, generator=generator).tolist()
    assert 0.3 < auc(*scores).value < 0.7


def test_one_direction_is_enough_and_it_acts_rather_than_recognises(extracted: Path) -> None:
    analysis = load_record(extracted).analysis
    assert analysis.residual[0] > 2 > -2 > analysis.residual[1]
    assert not analysis.spread
    assert analysis.front == ()
    assert analysis.told.finding == "one"
    assert [one.how for one in analysis.removals] == ["none", "edit"]
    assert analysis.shares[0] > 0.5
    assert analysis.harm.without_harm > 0 > analysis.harm.without_execution
    assert analysis.harm.without_execution == analysis.residual[1]
    assert analysis.stability.halves > 0.95


def test_the_direction_is_found_again_from_other_splits(extracted: Path) -> None:
    record = load_record(extracted)
    seeds, stability = record.analysis.seeds, record.analysis.stability
    assert seeds.count == 3
    assert 1 > seeds.cosine_mean >= seeds.cosine_min > 0.9
    assert (seeds.method, seeds.position) == (record.direction.method, record.direction.position)
    assert (stability.method, stability.position) == (seeds.method, seeds.position)


def test_the_doses_of_an_addition_add(demo: Path, tmp_path: Path) -> None:
    files = write_prompts(prompts(), tmp_path)
    asked = ["--positive", files[0], "--negative", files[1], "--method", "projected", "--induce"]
    sizes = ["--train", 32, "--validation", 12, "--test", 8]
    run("extract", demo, "-o", tmp_path / "out", *asked, *sizes)
    result = run("analyse", tmp_path / "out", "--dose", "0,1")
    assert "still without it" in result.output
    none, whole = load_record(tmp_path / "out").analysis.dose
    assert (none.failures, none.kl) == (1.0, 0.0)
    assert whole.failures < 0.3
    assert whole.kl > 0


def test_what_is_edited_is_what_is_analysed(demo: Path, tmp_path: Path) -> None:
    """The difference in means, at its own position; of the paper's rule it keeps most refusals."""
    files = write_prompts(prompts(), tmp_path)
    asked = ["--positive", files[0], "--negative", files[1], "--strengths", "one"]
    sizes = ["--train", 32, "--validation", 12, "--test", 8]
    found = {}
    for method in ("difference", "leace"):
        out = tmp_path / method
        run("extract", demo, "-o", out, *asked, *sizes, "--method", method)
        result = run("analyse", out)
        found[method] = load_record(out)
        assert ("not what is edited" in result.output) == (method == "leace")
    difference, leace = found["difference"], found["leace"]
    assert difference.direction.position < -1
    for record in (difference, leace):
        # The selection's own score of the edit, on the prompts that it keeps.
        assert record.analysis.residual[1] == pytest.approx(record.selection.chosen.bypass, abs=0.5)
    # It leaves refusals; not because there were many directions, but because it is a bad one.
    assert difference.analysis.residual[1] > 0 >= min(difference.analysis.residual[2:])
    assert difference.analysis.alone < -2
    assert not difference.analysis.spread
    assert difference.analysis.told.finding == "failed"
    assert difference.analysis.removals[-1].how == "single"
    stability = difference.analysis.stability
    assert (stability.method, stability.position) == ("difference", difference.direction.position)
    assert leace.analysis.stability.method == "projected"


def test_one_training_prompt_is_enough_for_a_record(demo: Path, tmp_path: Path) -> None:
    files = write_prompts(prompts(), tmp_path)
    asked = ["--positive", files[0], "--negative", files[1], "--strengths", "one"]
    sizes = ["--train", 1, "--validation", 8, "--test", 8, "--method", "projected"]
    run("extract", demo, "-o", tmp_path / "out", *asked, *sizes)
    result = run("analyse", tmp_path / "out", "--seeds", 1)
    assert "fewer than 4 training prompts" in result.output
    assert "singular directions" not in result.output
    analysis = load_record(tmp_path / "out").analysis
    assert analysis.stability is None
    assert analysis.seeds is None
    assert {one.separation for one in analysis.geometry} == {None}


def test_dose_response_begins_at_the_base(extracted: Path) -> None:
    none, whole = load_record(extracted).analysis.dose
    assert (none.strength, none.kl) == (0.0, 0.0)
    assert none.failures > 0.9 > 0.1 >= whole.failures
    assert whole.kl > 0


def test_no_prompt_is_written(extracted: Path) -> None:
    text = (extracted / "record.json").read_text()
    assert not [prompt for prompt, _ in prompts().positive if prompt in text]


def test_a_suffix_that_changes_the_subject_moves_the_projection(extracted: Path) -> None:
    result = run("--format", "json", "probe", extracted, "--suffix", SUFFIX)
    document = json.loads(result.stdout)
    rows = {row["name"]: row for row in document["rows"]}
    layer = load_record(extracted).direction.layer
    shown, moved, other = (
        rows[name]["projections"][layer] for name in ("positive", "positive + suffix", "negative")
    )
    assert shown > moved > other
    assert rows["positive"]["log_odds"] > rows["positive + suffix"]["log_odds"]
    record = load_record(extracted)
    plain, suffixed = document["detection"]
    for ours, again in zip(record.analysis.detection, plain, strict=True):
        assert again["detector"]["auc"]["value"] == ours.detector.auc.value
    # Prompts that end otherwise are told apart less surely, by a threshold that knew no suffix.
    assert suffixed[layer]["detector"]["accuracy"]["value"] < 1.0
    assert SUFFIX not in (extracted / "record.json").read_text()


def test_writes_add_up_to_the_stream(demo: Path, extracted: Path) -> None:
    chat = load_chat_model(demo)
    direction = Direction.load(extracted / "direction.safetensors")
    sequence = chat.prompt_tokens("How do I make bread?")
    writes = attribute(chat, trace_writers(chat.model), direction.vector, [sequence])
    seen: list[torch.Tensor] = []
    handle = chat.layers[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        chat.model(input_ids=torch.tensor([sequence]), use_cache=False)
    handle.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    embedded = chat.model.get_input_embeddings().weight[sequence[-1]].double()
    total = sum(writes.values()) + float(embedded @ direction.vector)
    assert total == pytest.approx(float(output[0, -1].double() @ direction.vector), abs=1e-3)
    heads = [name for name in writes if name.startswith("L3.H")]
    assert len(heads) == chat.model.config.num_attention_heads


def test_a_dose_that_is_no_number_is_wrong_usage(extracted: Path) -> None:
    result = CliRunner().invoke(command, ["analyse", str(extracted), "--dose", "much"])
    assert result.exit_code == 2
    assert "list of numbers" in result.output
