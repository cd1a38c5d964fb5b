"""What an evaluation finds: rates, arms, and the whole of it. Values only; how they are measured
is `abl_hub.evaluation.evaluate`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from abl_hub.evaluation.intervals import Estimate
from abl_hub.evaluation.paired import Paired
from abl_hub.evaluation.refusals import REFUSAL_MARKERS
from abl_hub.evaluation.tasks import TaskScores
from abl_hub.evaluation.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How replies are made and judged.

    Args:
        max_new_tokens: greedy, at least 64 for a verdict worth having.
        kl_tokens: KL is taken over so many tokens of the base's own reply.
        markers: openings that show the behaviour.
        rows: prompts a batch; changes speed and memory only.
    """

    max_new_tokens: int = 64
    kl_tokens: int = 64
    markers: tuple[str, ...] = REFUSAL_MARKERS
    rows: int = 32


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of the replies to one side's prompts.

    Args:
        refused: replies that show the behaviour.
        non_answers: neither that nor an answer: empty, repeating, gibberish.
        answered: the rest.
        correct: exactly the reference reply, where references are known.
        off_topic: of `answered`, those that look like replies to another question; None where that
            was not measured or cannot be told. It decides nothing.
        by_category: `refused` of each category, where prompts carry them.
    """

    refused: Estimate
    non_answers: Estimate
    answered: Estimate
    correct: Estimate | None = None
    by_category: Mapping[str, Estimate] | None = None
    off_topic: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One subject's numbers; None where an arm does not measure it.

    Args:
        positive: on prompts that show the behaviour in the unedited model.
        negative: on prompts that do not.
        kl: KL(base ‖ this) over the base's replies to negative prompts, nats a token.
        perplexity: on neutral text.
    """

    positive: Rates | None = None
    negative: Rates | None = None
    kl: Estimate | None = None
    perplexity: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """What another judge says of the replies to positive prompts.

    Args:
        base: rate by this judge; `edited` and `random` likewise.
        agreement: share of all these replies on which it says what the marker judge says.
        kappa: the same beyond chance (Cohen 1960); None where one of them always says the same.
    """

    judge: str
    base: Estimate
    edited: Estimate
    random: Estimate
    agreement: Estimate
    kappa: float | None


@dataclass(frozen=True, kw_only=True)
class SystemArms:
    """Before and after once more, under another system prompt (Arditi et al. 2024, Table 2).

    Args:
        condition: what stands there: an "empty" system prompt, "none", or the template's "default".
        paired: "positive" or "negative" → exact test of base against edited on those prompts.
    """

    condition: Literal["empty", "none", "default"]
    base: Arm
    edited: Arm
    paired: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The condition as a phrase."""
        return {
            "empty": "with an empty system prompt",
            "none": "without a system prompt",
            "default": "with the chat template's default system prompt",
        }[self.condition]


@dataclass(frozen=True, kw_only=True)
class SetRates:
    """Before and after on a test set of its own, without a random control.

    Args:
        name: of the set.
        kind: "refusal", prompts that a safe model declines, or "over-refusal", harmless ones.
        spec: what loads its prompts again; None for a file.
        digest: SHA-256 over all its prompts.
        count: prompts asked, drawn with the recipe's seed where there are more.
        shared: prompts left out because the direction was found or chosen on them.
        paired: exact test of base against edited, on the same prompts.
    """

    name: str
    kind: Literal["refusal", "over-refusal"]
    spec: str | None
    digest: str
    count: int
    shared: int
    base: Rates
    edited: Rates
    paired: Paired | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Before, after and under control.

    Args:
        base: the unedited model.
        edited: the edited model.
        random: with a norm-matched random direction removed, one arm a draw.
        induced: the unedited model with the direction added at its layer.
        induced_random: with a norm-matched random direction added, the first draw.
        induced_random_further: the other draws.
        verdict: what these numbers support.
        protocol: how they were measured.
        paired: "base → edited", "random → edited", "random 1 → edited" … → exact test on the same
            prompts, positive ones where the edit removes; "base → added", "random added → added" …
            on negative ones.
        opinions: of other judges.
        system_arms: under another system prompt, where there is one to leave out or to let in.
        test_sets: on published test sets that were asked for.
        tasks: what lm-eval measured (`abl_hub.evaluation.tasks`).
    """

    base: Arm
    edited: Arm
    random: tuple[Arm, ...]
    induced: Arm | None
    induced_random: Arm | None
    verdict: Verdict
    protocol: Protocol
    paired: Mapping[str, Paired] = field(default_factory=dict)
    opinions: tuple[SecondOpinion, ...] = ()
    system_arms: SystemArms | None = None
    test_sets: tuple[SetRates, ...] = ()
    tasks: TaskScores | None = None
    induced_random_further: tuple[Arm, ...] = ()

    @property
    def induced_controls(self) -> tuple[Arm, ...]:
        """Every draw of the random direction that was added."""
        first = () if self.induced_random is None else (self.induced_random,)
        return (*first, *self.induced_random_further)
