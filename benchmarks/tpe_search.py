"""The baseline of `strengths.py`: a TPE search over layer kernels, as tools describe it.

Written from published descriptions: a weight for every layer and component (attention output, MLP
output), shaped by four numbers each (a largest weight, the layer where it is reached, a smallest
weight, how many layers it takes to fall to it); the direction of one layer for all, interpolated
between neighbours, or each layer's own; refusals are counted by markers in greedy replies, the cost
is the first token's KL; Optuna's multivariate TPE minimises both, a third of the trials at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import optuna
import torch

from abl_hub.evaluation.refusals import shows_marker
from abl_hub.model.chat import ChatModel
from abl_hub.model.generate import greedy_replies, next_token_log_probs
from abl_hub.model.stream import Projection, projecting
from abl_hub.model.writers import Trace

COMPONENTS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The best trial.

    Args:
        active: a context in which the model runs with its edit.
        refusals: on the search's own prompts.
        kl: of the first token, on the search's own prompts.
    """

    active: Callable[[], AbstractContextManager[None]]
    refusals: int
    kl: float


def search(
    chat: ChatModel,
    trace: Trace,
    directions: torch.Tensor,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    trials: int,
    max_new_tokens: int,
    seed: int = 0,
) -> Found:
    """Search for weights; `directions` are (layers, width), one a layer's output."""
    layers = trace.layer_count
    base = next_token_log_probs(chat, negative).double()
    components = _components(trace)

    def active(weights: torch.Tensor, used: torch.Tensor) -> AbstractContextManager[None]:
        projections = {}
        for writer in trace.writers:
            if writer.layer is None:
                continue
            r = used[writer.layer] / used[writer.layer].norm()
            weight = float(weights[writer.layer, components[writer.parameter]])
            projections[writer.parameter] = (
                writer.axis,
                Projection(read=r[None].float(), remove=weight * r[None].float()),
            )
        return projecting(chat.model, projections)

    def drawn(trial: optuna.Trial) -> tuple[torch.Tensor, torch.Tensor]:
        weights = torch.zeros(layers, COMPONENTS)
        for component in range(COMPONENTS):
            most = trial.suggest_float(f"most_{component}", 0.8, 1.5)
            place = trial.suggest_float(f"place_{component}", 0.6 * (layers - 1), layers - 1)
            least = trial.suggest_float(f"least_{component}", 0.0, 1.0) * most
            reach = trial.suggest_float(f"reach_{component}", 1.0, 0.6 * (layers - 1))
            distance = (torch.arange(layers) - place).abs()
            fallen = most + (distance / reach).clamp(max=1.0) * (least - most)
            weights[:, component] = torch.where(distance <= reach, fallen, torch.zeros(()))
        if trial.suggest_categorical("scope", ["one", "each"]) == "each":
            return weights, directions
        at = trial.suggest_float("layer", 0.4 * (layers - 1), 0.9 * (layers - 1))
        below = int(at)
        between = torch.lerp(directions[below], directions[min(below + 1, layers - 1)], at - below)
        return weights, between.expand(layers, -1)

    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        weights, used = drawn(trial)
        kept[trial.number] = (weights, used)
        with active(weights, used):
            replies = greedy_replies(chat, positive, max_new_tokens=max_new_tokens)
            after = next_token_log_probs(chat, negative).double()
        refusals = sum(shows_marker(reply.text) for reply in replies)
        return float(refusals), float((base.exp() * (base - after)).sum(-1).mean())

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(n_startup_trials=trials // 3, multivariate=True, seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=trials)
    best = min(study.best_trials, key=lambda trial: (trial.values[0], trial.values[1]))
    weights, used = kept[best.number]
    return Found(
        active=lambda: active(weights, used), refusals=int(best.values[0]), kl=best.values[1]
    )


def _components(trace: Trace) -> dict[str, int]:
    """Parameter → 0 for the first child module of its layer that writes, 1 for the others."""
    first: dict[int, str] = {}
    found = {}
    for writer in trace.writers:
        if writer.layer is None:
            continue
        child = writer.parameter.split(f".{writer.layer}.", 1)[1].partition(".")[0]
        found[writer.parameter] = int(child != first.setdefault(writer.layer, child))
    return found
