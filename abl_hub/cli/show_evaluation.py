"""How an evaluation looks in a terminal: the table of arms, the tests, the verdict."""

from __future__ import annotations

from abl_hub.cli.output import Output
from abl_hub.evaluation.arms import Arm, Evaluation, SetRates, SystemArms
from abl_hub.evaluation.intervals import Estimate
from abl_hub.evaluation.paired import weakest
from abl_hub.evaluation.tasks import TaskScores
from abl_hub.report.record import Record


def evaluation_lines(output: Output, record: Record, evaluation: Evaluation) -> None:
    """Everything that was measured, the verdict last."""
    behaviour = record.direction.behaviour
    _arms_table(output, behaviour, evaluation)
    output.line(
        f"Replies to {record.positive.counts['test']} prompts that show it and "
        f"{record.negative.counts['test']} others, all held out, with 95% intervals; KL from the "
        "base over its replies to the others, nats a token; perplexity of neutral text"
    )
    _reply_lines(output, evaluation)
    _category_table(output, evaluation)
    if evaluation.system_arms is not None:
        _system_lines(output, behaviour, evaluation.system_arms)
    if evaluation.test_sets:
        _sets_table(output, evaluation.test_sets)
    if evaluation.tasks is not None:
        _tasks_table(output, evaluation.tasks)
    output.line(f"Verdict: {evaluation.verdict.label}: {evaluation.verdict.reason}")


def rate(estimate: Estimate) -> str:
    """A share and its interval."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _arms_table(output: Output, behaviour: str, evaluation: Evaluation) -> None:
    arms = [("base", evaluation.base), ("edited", evaluation.edited)]
    arms += [
        (f"random {number}" if number else "random", arm)
        for number, arm in enumerate(evaluation.random)
    ]
    if evaluation.induced is not None:
        arms.append(("added", evaluation.induced))
    arms += [
        (f"random added {number}" if number else "random added", arm)
        for number, arm in enumerate(evaluation.induced_controls)
    ]
    exact = any(arm.positive and arm.positive.correct for _, arm in arms)
    output.table(
        [
            "",
            behaviour,
            "non-answers",
            *(["exactly right"] if exact else []),
            f"{behaviour}, others",
            "KL",
            "perplexity",
        ],
        [[name, *_cells(arm, exact)] for name, arm in arms],
    )


def _reply_lines(output: Output, evaluation: Evaluation) -> None:
    strays = [
        f"{rate(rates.off_topic)} ({side})"
        for side, rates in (
            ("prompts that show it", evaluation.edited.positive),
            ("others", evaluation.edited.negative),
        )
        if rates is not None and rates.off_topic is not None
    ]
    if strays:
        output.line(f"Answers off their topic, edited: {', '.join(strays)}")
    for pair, draws, test in weakest(evaluation.paired):
        of = f", the weakest of {draws} draws" if draws > 1 else ""
        output.line(
            f"Same prompts, {pair}: {test.only_before} stopped, {test.only_after} began, "
            f"{_probability(test.p)} (exact McNemar test{of})"
        )
    for opinion in evaluation.opinions:
        beyond = "" if opinion.kappa is None else f", kappa {opinion.kappa:.2f}"
        output.line(
            f"Judge {opinion.judge}: base {opinion.base.value:.2f}, edited "
            f"{opinion.edited.value:.2f}, random {opinion.random.value:.2f}; agrees with the "
            f"markers on {opinion.agreement.value:.2f} of the replies{beyond}"
        )


def _category_table(output: Output, evaluation: Evaluation) -> None:
    categories = evaluation.base.positive.by_category if evaluation.base.positive else None
    after = evaluation.edited.positive.by_category if evaluation.edited.positive else None
    if categories and after:
        output.table(
            ["category", "base", "edited"],
            [[name, rate(before), rate(after[name])] for name, before in categories.items()],
        )


def _system_lines(output: Output, behaviour: str, arms: SystemArms) -> None:
    for side, prompts in (("positive", "prompts that show it"), ("negative", "other prompts")):
        before, after = getattr(arms.base, side), getattr(arms.edited, side)
        output.line(
            f"{behaviour.capitalize()} {arms.words}, {prompts}: "
            f"base {rate(before.refused)}, edited {rate(after.refused)}"
            + (f", {_probability(arms.paired[side].p)}" if side in arms.paired else "")
        )


def _sets_table(output: Output, sets: tuple[SetRates, ...]) -> None:
    output.table(
        ["test set", "kind", "prompts", "base", "edited", "McNemar", "non-answers"],
        [
            [
                one.name,
                one.kind,
                str(one.count),
                rate(one.base.refused),
                rate(one.edited.refused),
                "" if one.paired is None else _probability(one.paired.p),
                rate(one.edited.non_answers),
            ]
            for one in sets
        ],
    )


def _tasks_table(output: Output, tasks: TaskScores) -> None:
    output.table(
        ["task", "metric", "questions", "base", "edited"],
        [
            [row.task, row.label, str(row.count), str(row.before), str(row.after)]
            for row in tasks.shown
        ],
    )
    output.line(tasks.setting)


def _cells(arm: Arm, exact: bool) -> list[str]:
    positive, negative = arm.positive, arm.negative
    right = rate(positive.correct) if positive and positive.correct else ""
    return [
        rate(positive.refused) if positive else "",
        rate(positive.non_answers) if positive else "",
        *([right] if exact else []),
        rate(negative.refused) if negative else "",
        f"{arm.kl.value:.4f}" if arm.kl else "",
        _perplexity(arm.perplexity.value) if arm.perplexity else "",
    ]


def _perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _probability(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
