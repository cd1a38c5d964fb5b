"""Tasks of lm-eval, offline: local questions that the demo model answers once it is edited."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import lm_eval
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from abl_hub.cli.group import abl_hub as command
from abl_hub.demo.corpus import REFUSALS, prompts
from abl_hub.demo.run import write_prompts
from abl_hub.directions.direction import Direction
from abl_hub.edits.hooks import prepared
from abl_hub.errors import EvaluationError
from abl_hub.evaluation.harness import check_tasks, run_tasks
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.tasks import Tasks
from abl_hub.model.chat import load_chat_model
from abl_hub.model.gains import gains
from abl_hub.model.trace import trace_writers
from abl_hub.report.page import write_report
from abl_hub.report.record import load_record
from abl_hub.stages.edit import recorded_edit

QUESTIONS = 12
SMALL = ["--train", "48", "--validation", "8", "--test", "16", "--max-new-tokens", "24"]
SMALL += ["--random-draws", "1", "--strengths", "one"]


def write_task(folder: Path, name: str, **config: object) -> None:
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        "metadata": {"version": 2.0},
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Which of two replies is likelier; the answer itself; and what no task may be."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": asked, "choices": [REFUSALS[0], answer], "right": int(number % 4 > 0)}
        for number, (asked, answer) in enumerate(prompts().positive[-QUESTIONS:])
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    write_task(
        folder,
        "demo_choice",
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{right}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    write_task(
        folder,
        "demo_reply",
        output_type="generate_until",
        doc_to_target="{{choices[1]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 64},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    write_task(
        folder,
        "demo_shots",
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{right}}",
        num_fewshot=2,
        fewshot_split="test",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    group = {
        "group": "demo_both",
        "task": ["demo_choice", "demo_shots"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 1},
    }
    (folder / "group.yaml").write_text(yaml.safe_dump(group))
    write_task(
        folder,
        "demo_foreign",
        output_type="generate_until",
        doc_to_target="{{choices[right]}}",
        metric_list=[
            {
                "metric": "someone/metric",
                "aggregation": "mean",
                "higher_is_better": True,
                "hf_evaluate": True,
            }
        ],
    )
    reply = {"output_type": "generate_until", "doc_to_target": "{{choices[1]}}"}
    write_task(folder, "demo_code", **reply, unsafe_code=True)
    write_task(folder, "demo_lost", **reply, dataset_kwargs={"data_files": "gone"})
    return folder


@pytest.fixture(scope="module")
def converted(demo: Path, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole job with tasks, from an empty folder in which nothing may be left."""
    folder = tmp_path_factory.mktemp("converted")
    files = write_prompts(prompts(), folder)
    words = ["convert", str(demo), "-o", str(folder / "out"), "--method", "projected", *SMALL]
    words += ["--positive", str(files[0]), "--negative", str(files[1])]
    words += ["--tasks", "demo_choice, demo_reply", "--tasks-path", str(tasks)]
    words += ["--tasks-chat-template", "--tasks-limit", "8"]
    (folder / "elsewhere").mkdir()
    with contextlib.chdir(folder / "elsewhere"):
        result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    assert not list((folder / "elsewhere").iterdir())
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_the_edit_changes_what_the_tasks_measure(converted: Path) -> None:
    record = load_record(converted / "out")
    assert record.evaluation is not None
    measured = record.evaluation.tasks
    assert measured is not None
    choice, reply = measured.scores
    assert (choice.task, choice.metric, choice.version) == ("demo_choice", "acc", "2.0")
    assert (reply.task, reply.metric, reply.filter) == ("demo_reply", "exact_match", "none")
    # In a quarter of the questions the refusal is called right, so that neither model has all.
    assert (choice.before.value, choice.after.value) == (0.25, 0.75)
    assert reply.before.value <= 0.25
    assert reply.after.value >= 0.75
    for score in (choice, reply):
        assert score.count == 8
        for share in (score.before, score.after):
            # The standard error of a mean of zeros and ones, with Bessel's correction.
            assert share.stderr == pytest.approx((share.value * (1 - share.value) / 7) ** 0.5)
    assert choice.digest == reply.digest
    assert choice.dataset is None  # a file on this machine
    assert measured.lm_eval.startswith("0.4.")
    assert record.recipe.tasks is not None
    assert record.recipe.tasks.limit == 8


def test_a_dry_run_names_the_tasks(demo: Path, tasks: Path) -> None:
    words = ["convert", str(demo), "--dry-run", "--tasks", "demo_choice,demo_reply"]
    result = CliRunner().invoke(command, [*words, "--tasks-path", str(tasks)])
    assert result.exit_code == 0, result.output
    assert "demo_choice, demo_reply, through lm-eval" in result.stdout


def test_every_report_shows_them(converted: Path) -> None:
    out = converted / "out"
    setting = "through the chat template, the first 8 questions of each task; ± one standard error"
    card = (out / "merged" / "README.md").read_text()
    write_report(load_record(out), converted / "report")
    page = (converted / "report" / "report.html").read_text()
    for text in (card, page, (converted / "stdout").read_text()):
        assert setting in text
        assert "0.2500 ± 0.1637" in text
        assert "0.7500 ± 0.1637" in text
    assert f"--tasks demo_choice,demo_reply --tasks-path {load_task_folder(out)}" in card
    results = ModelCard.load(out / "merged" / "README.md").data.eval_results
    assert results is not None
    assert [one.metric_value for one in results if one.dataset_name == "demo_choice"] == [0.75]
    # Nothing of lm-eval's own talk, and no question, is anywhere.
    said = (converted / "stdout").read_text() + (converted / "stderr").read_text()
    assert "lm-eval, edited ..." in said
    for noise in ("requests", "bootstrapping", "`pretrained`", "examples/s"):
        assert noise not in said
    kept = [path.read_text() for path in out.rglob("*.json") if "tokenizer" not in path.name]
    assert not [asked for asked, _ in prompts().positive for text in kept if asked in text]


def load_task_folder(out: Path) -> str:
    recipe = load_record(out).recipe
    assert recipe.tasks is not None
    assert recipe.tasks.path is not None
    return Path(recipe.tasks.path).name


def test_hooks_measure_what_the_merged_model_does(converted: Path, tasks: Path, demo: Path) -> None:
    out = converted / "out"
    record, direction = load_record(out), Direction.load(out / "direction.safetensors")
    base = load_chat_model(demo)
    trace = trace_writers(base.model)
    edit = recorded_edit(record, direction, trace)
    asked = Tasks(names=("demo_choice",), path=str(tasks), limit=8, chat_template=True)
    hooks = Subject(chat=base, active=prepared(edit, base.model, gains(base.model, trace.writers)))
    (found,) = run_tasks(asked, base=Subject(chat=base), edited=hooks).scores
    assert record.evaluation is not None
    assert record.evaluation.tasks is not None
    assert found == record.evaluation.tasks.scores[0]
    assert base.tokenizer.name_or_path == load_chat_model(demo).tokenizer.name_or_path


def test_the_numbers_are_those_of_simple_evaluate(demo: Path, tasks: Path) -> None:
    chat = load_chat_model(demo)
    names = ["demo_shots", "demo_reply"]
    subject = Subject(chat=chat)
    ours = run_tasks(Tasks(names=tuple(names), path=str(tasks)), base=subject, edited=subject)
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=chat.model, tokenizer=chat.tokenizer, batch_size=4),
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=False,
    )["results"]
    for score in ours.scores:
        assert score.before == score.after
        assert score.before.value == theirs[score.task][f"{score.metric},none"]
        assert score.before.stderr == theirs[score.task][f"{score.metric}_stderr,none"]
        assert score.count == QUESTIONS
    assert {score.task: score.shots for score in ours.scores} == {"demo_shots": 2, "demo_reply": 0}


def test_a_group_is_one_line_and_an_unknown_name_is_refused(demo: Path, tasks: Path) -> None:
    subject = Subject(chat=load_chat_model(demo))
    asked = Tasks(names=("demo_both",), path=str(tasks), limit=2)
    found = run_tasks(asked, base=subject, edited=subject)
    assert [score.task for score in found.shown] == ["demo_both"]
    assert {score.task: score.part_of for score in found.scores} == {
        "demo_both": None,
        "demo_choice": "demo_both",
        "demo_shots": "demo_both",
    }
    assert found.shown[0].count == 4
    check_tasks(Tasks(names=("mmlu", "gsm8k", "arc_challenge", "truthfulqa"), path=str(tasks)))
    with pytest.raises(EvaluationError, match=r"knows no task 'gsm8kk'.*Did you mean .*gsm8k"):
        check_tasks(Tasks(names=("gsm8kk",), path=str(tasks)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("demo_foreign", "someone/metric is not run: its code would come from the Hub.*--trust"),
        ("demo_code", "demo_code is not run: it runs the code that a model writes"),
        ("demo_lost", "cannot load demo_lost"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    demo: Path, tasks: Path, name: str, said: str
) -> None:
    subject = Subject(chat=load_chat_model(demo))
    with pytest.raises(EvaluationError, match=said) as refused:
        run_tasks(Tasks(names=(name,), path=str(tasks)), base=subject, edited=subject)
    assert "\n" not in str(refused.value)


def test_without_lm_eval_the_extra_is_named(
    small_output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    result = CliRunner().invoke(command, ["evaluate", str(small_output), "--tasks", "mmlu"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: Tasks need lm-evaluation-harness. Run `pip install abl-hub[eval]`.\n"
    )


def test_options_of_tasks_need_tasks(small_output: Path) -> None:
    result = CliRunner().invoke(command, ["evaluate", str(small_output), "--tasks-limit", "3"])
    assert result.exit_code == 2
    assert "need --tasks" in result.stderr
