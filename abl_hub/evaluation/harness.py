"""Capability: tasks of lm-evaluation-harness, before and after, through its own Python API.

Knows how lm-eval is asked; what was done to the subject is unseen. Its replies, its logs and its
bars are dropped: what is kept are metrics with their standard errors.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from abl_hub.errors import EvaluationError
from abl_hub.evaluation.harness_answer import read_scores
from abl_hub.evaluation.subject import Subject
from abl_hub.evaluation.tasks import Tasks, TaskScores
from abl_hub.progress import SILENT, Advance, Progress


def check_tasks(asked: Tasks) -> None:
    """See that lm-eval is there and knows every name; loads no data.

    Raises:
        EvaluationError: it is not, or does not.
    """
    _manager(asked)


def run_tasks(
    asked: Tasks,
    *,
    base: Subject,
    edited: Subject,
    rows: int = 32,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> TaskScores:
    """Ask both subjects the same questions.

    Args:
        rows: questions a batch.
        trust_remote_code: let tasks fetch the code of their metrics from the Hub.

    Raises:
        EvaluationError: lm-eval is not there, does not know a task or cannot load it; or the task
            needs code that nobody allowed.
    """
    manager = _manager(asked)
    with progress.stage("Loading lm-eval's tasks"), _careful(trust_remote_code), _quiet():
        loaded = _load(manager, asked.names)
    answers = []
    for name, subject in (("base", base), ("edited", edited)):
        with progress.stage(f"lm-eval, {name}") as advance, _careful(trust_remote_code), _quiet():
            with subject.active():
                answers.append(_ask(subject, loaded, asked, rows, advance))
    digests = {name: _digest(task, asked.limit) for name, task in loaded["tasks"].items()}
    return read_scores(asked, digests, *answers)


def _manager(asked: Tasks) -> Any:
    """lm-eval's index of tasks.

    Raises:
        EvaluationError: no lm-eval, or a name that it does not know.
    """
    if find_spec("lm_eval") is None:
        raise EvaluationError(
            "Tasks need lm-evaluation-harness", next_step="Run `pip install abl-hub[eval]`"
        )
    from lm_eval.tasks import TaskManager

    with _quiet():
        if asked.path is not None:
            own = TaskManager(include_path=asked.path, include_defaults=False)
            if set(asked.names) <= set(own.all_subtasks):
                return own  # lm-eval's own thousands of files need not be read
        manager = _everything(asked.path)
    for name in asked.names:
        if name not in manager.task_index:
            near = get_close_matches(name, manager.all_tasks)
            also = f", {asked.path} neither" if asked.path else ""
            raise EvaluationError(
                f"lm-eval knows no task {name!r}{also}",
                next_step=f"Did you mean {' or '.join(near)}?"
                if near
                else "`lm-eval ls tasks` lists them; --tasks-path adds your own",
            )
    return manager


@cache
def _everything(path: str | None) -> Any:
    """lm-eval's own index and that of the folder `path`: some thousands of files, read once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=path)


def _load(manager: Any, names: Sequence[str]) -> Any:
    """The tasks with their data.

    Raises:
        EvaluationError: data or a part of the task cannot be had, or it cannot be asked here.
    """
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        loaded = manager.load(list(names))
    except (OSError, ValueError, LookupError, TypeError, ImportError, AttributeError) as error:
        raise _unloadable(names, error) from error
    except (DatasetsError, TemplateError) as error:
        raise _unloadable(names, error) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise EvaluationError(
                f"Task {name} is not run", why="it runs the code that a model writes"
            )
        if getattr(task, "MULTIMODAL", False):
            raise EvaluationError(f"Task {name} is not run", why="it asks about more than text")
    return loaded


def _unloadable(names: Sequence[str], error: Exception) -> EvaluationError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return EvaluationError(f"lm-eval cannot load {', '.join(names)}", why=lines[0])


def _ask(subject: Subject, loaded: Any, asked: Tasks, rows: int, advance: Advance) -> Any:
    """lm-eval's answer for one subject.

    As `lm_eval.simple_evaluate` with its defaults, without the report on the machine that it adds,
    for which it runs git in the working folder.
    """
    import lm_eval
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.models.huggingface import HFLM

    chat = subject.chat
    lm = HFLM(
        pretrained=chat.model,
        tokenizer=copy.deepcopy(chat.tokenizer),  # lm-eval gives it a padding token
        batch_size=rows,
    )
    lm.set_cache_hook(_Counter(advance))
    lm.apply_chat_template = _opened(lm.apply_chat_template, chat.opening)
    torch.manual_seed(DEFAULT_OTHER_SEED)  # for tasks whose replies are sampled
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return lm_eval.evaluate(
        lm,
        loaded,
        limit=asked.limit,
        log_samples=False,
        system_instruction=chat.system if asked.chat_template else None,
        apply_chat_template=asked.chat_template,
        fewshot_as_multiturn=True,
    )


class _Counter:
    """What lm-eval takes for a cache of answers: told of each, it keeps none."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def add_partial(self, _kind: str, _request: object, _answer: object) -> None:
        self.advance(1)


def _opened(render: Callable[..., str], opening: str) -> Callable[..., str]:
    """The chat template with what all replies begin with behind it, as everywhere else here."""

    def rendered(turns: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        text = render(turns, add_generation_prompt=add_generation_prompt)
        return text + opening if add_generation_prompt else text

    return rendered


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval prints, logs and draws bars; none of it is ours to show."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _careful(trust_remote_code: bool) -> Iterator[None]:
    """lm-eval fetches metrics that it does not have from the Hub, as code; only if that is allowed.

    Raises:
        EvaluationError: one was asked for, and that is not allowed.
    """
    if trust_remote_code:
        yield
        return
    import evaluate

    wanted: list[str] = []

    def refuse(name: str, *_args: object, **_options: object) -> None:
        wanted.append(name)
        raise PermissionError(name)

    fetch, evaluate.load = evaluate.load, refuse
    try:
        yield
    finally:
        evaluate.load = fetch
        if wanted:
            raise EvaluationError(
                f"The metric {wanted[0]} is not run",
                why="its code would come from the Hub",
                next_step="Allow that with --trust-remote-code",
            )


def _digest(task: Any, limit: int | None) -> str:
    """SHA-256 of the first `limit` questions."""
    digest = hashlib.sha256()
    for _, question in task.doc_iterator(limit=limit):
        digest.update(json.dumps(question, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
