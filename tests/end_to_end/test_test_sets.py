"""`--test-set`: published sets by name, before and after, on a Hub that has harmless ones."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import CommitOperationAdd, HfApi
from pyarrow import parquet

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import prompts
from abl_hub.demo.run import write_prompts
from abl_hub.hub.local import LocalHub
from abl_hub.hub.named_sets import NAMED_SETS, TEST_SETS
from abl_hub.report.record import load_record
from abl_hub.stages.inputs import fetch_prompts
from abl_hub.stages.runtime import Runtime

REFUSED = [prompt for prompt, _ in prompts().positive]
ANSWERED = [prompt for prompt, _ in prompts().negative]


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def put(
    hub: LocalHub, repo: str, path: str, columns: dict[str, list[str]], card: str | None = None
) -> str:
    token = hub.add_token(repo.partition("/")[0])
    api = HfApi(endpoint=hub.endpoint, token=token)
    api.create_repo(repo, repo_type="dataset", private=False, exist_ok=True)
    table = io.BytesIO()
    parquet.write_table(pa.table(columns), table)
    files = {path: table.getvalue()}
    if card is not None:
        files["README.md"] = f"---\n{card}---\n".encode()
    done = api.create_commit(
        repo,
        [CommitOperationAdd(path_in_repo=p, path_or_fileobj=f) for p, f in files.items()],
        commit_message="Add prompts",
        repo_type="dataset",
    )
    return str(done.oid)


@pytest.fixture
def hub(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    return local_hub


def test_sets_are_measured_before_and_after(hub: LocalHub, demo: Path, tmp_path: Path) -> None:
    half = 30
    xstest = put(
        hub,
        "walledai/XSTest",
        "data/test-00000-of-00001.parquet",
        {
            # A judge that read the rows labelled otherwise would count refusals.
            "prompt": [*ANSWERED[-half:], *REFUSED[-half:]],
            "label": ["safe"] * half + ["unsafe"] * half,
            "type": (["homonyms", "definitions"] * half)[: 2 * half],
        },
    )
    own = tmp_path / "own.txt"
    # Some of these were trained on: they are left out, whatever the set is for.
    own.write_text("\n".join(REFUSED), encoding="utf-8")
    positive, negative = write_prompts(prompts(), tmp_path)
    out = tmp_path / "out"
    sides = ["--positive", positive, "--negative", negative, "--method", "projected"]
    sizes = ["--train", 32, "--validation", 12, "--test", 8, "--random-draws", 1]
    sets = ["--test-set", "xstest", "--test-set", f"refusal:{own}", "--test-set-limit", 25]
    result = run("convert", demo, "-o", out, *sides, *sizes, *sets)
    assert result.exit_code == 0, result.output
    record = load_record(out)
    over, refused = record.evaluation.test_sets
    assert over.paired.only_before == over.paired.only_after == 0
    stopped = refused.paired.only_before - refused.paired.only_after
    rates = refused.base.refused.value - refused.edited.refused.value
    assert stopped == round(rates * refused.count) > 0
    assert refused.paired.p < 0.001
    assert (over.name, over.kind, over.count) == ("xstest", "over-refusal", 25)
    assert over.spec == f"walledai/XSTest@{xstest}:test#prompt?label=safe"
    assert over.base.refused.value < 0.1
    assert set(over.base.by_category) == {"homonyms", "definitions"}
    assert (refused.name, refused.kind, refused.count) == ("own.txt", "refusal", 25)
    assert refused.spec is None
    assert refused.shared == 32 + 12
    assert refused.base.refused.value > 0.9
    assert refused.edited.refused.value < 0.1
    card = (out / "merged" / "README.md").read_text()
    assert "| xstest | over-refusal | 25 |" in card
    assert "--test-set xstest" in card
    assert "--test-set refusal:own.txt" in card
    assert str(tmp_path) not in card
    assert "xstest" in result.output
    result = run("evaluate", out, "--test-set", f"over-refusal:{own}")
    assert result.exit_code == 0, result.output
    [again] = load_record(out).evaluation.test_sets
    assert again.count == 200
    assert again.shared == refused.shared


def test_the_papers_mixture_is_a_pair_of_prompt_sets(
    hub: LocalHub, demo: Path, tmp_path: Path
) -> None:
    thirds = [REFUSED[0::3], REFUSED[1::3], REFUSED[2::3]]
    names = ("walledai/AdvBench", "walledai/MaliciousInstruct", "walledai/TDC23-RedTeaming")
    train = "data/train-00000-of-00001.parquet"
    commits = [
        put(hub, name, train, {"prompt": part}) for name, part in zip(names, thirds, strict=True)
    ]
    put(
        hub,
        "tatsu-lab/alpaca",
        train,
        # However it is written, a prompt that is there twice is one.
        {
            "instruction": [*ANSWERED, ANSWERED[0].upper(), ANSWERED[2] + " "],
            "input": [*(["", "to this"] * (len(ANSWERED) // 2)), "", ""],
        },
    )
    validation = [f"{prompt} Now!" for prompt in REFUSED[:12]]
    tested = [*(f"{prompt} Please." for prompt in REFUSED[:8]), *thirds[0][:40]]
    put(
        hub,
        "swiss-ai/harmbench",
        "DirectRequest/val-00000-of-00001.parquet",
        {
            "Behavior": [*validation, *ANSWERED[:20]],
            "FunctionalCategory": ["standard"] * 12 + ["copyright"] * 20,
        },
        card="configs:\n- config_name: DirectRequest\n  data_files:\n  - split: val\n"
        "    path: DirectRequest/val-*\n",
    )
    put(
        hub,
        "JailbreakBench/JBB-Behaviors",
        "data/harmful.parquet",
        {"Goal": tested},
        card="configs:\n- config_name: behaviors\n  data_files:\n  - split: harmful\n"
        "    path: data/harmful.parquet\n",
    )
    out = tmp_path / "out"
    mixture = ["--positive", "paper-harmful", "--negative", "paper-harmless"]
    sizes = ["--train", 16, "--validation", 8, "--test", 48, "--method", "projected"]
    result = run("extract", demo, "-o", out, *mixture, *sizes)
    assert result.exit_code == 0, result.output
    record = load_record(out)
    # Each of the paper's splits comes from its own sets; what is tested on is in no other.
    found = fetch_prompts(record.recipe, Runtime(endpoint=hub.endpoint, token=hub.token))
    asked = found.contrast.positive
    assert set(asked.test) == set(tested)
    assert set(asked.validation) < set(validation)
    assert set(asked.train) < set(REFUSED) - set(tested)
    assert record.positive.splits == asked.digests()
    assert found.negative.duplicates == 2
    for name, commit in zip(names, commits, strict=True):
        assert f"{name}@{commit}:train#prompt" in record.positive.spec
    assert record.negative.spec.endswith(":train#instruction?input=")
    # The record alone finds the same prompts again, whatever becomes of the sets.
    put(hub, names[0], train, {"prompt": ["Something else?"]})
    result = run("apply", out)
    assert result.exit_code == 0, result.output


def test_every_name_is_an_address_and_no_other_name_is_taken(demo: Path, tmp_path: Path) -> None:
    assert all("/" in spec and ":" in spec and "#" in spec for spec in NAMED_SETS.values())
    assert {found.kind for found in TEST_SETS.values()} == {"refusal", "over-refusal"}
    positive, negative = write_prompts(prompts(), tmp_path)
    words = ["--positive", positive, "--negative", negative, "--train", 8, "--validation", 4]
    result = run(
        "convert", demo, "-o", tmp_path / "out", *words, "--test", 4, "--test-set", "nonesuch"
    )
    assert result.exit_code == 1
    assert "No test set 'nonesuch'. Choose of jailbreakbench" in result.output
