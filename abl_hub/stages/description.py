"""What the activations of an unedited model tell of a direction: how far the two sides' prompts lie
apart along it, by layer, and how surely it is found again. No forward pass, no reply.
"""

from __future__ import annotations

import torch

from abl_hub.directions.direction import Direction
from abl_hub.directions.evidence import Samples
from abl_hub.directions.geometry import LayerGeometry, cosines, separation
from abl_hub.directions.methods.difference import mean_difference
from abl_hub.directions.methods.projected import without
from abl_hub.directions.methods.svd import spectrum
from abl_hub.directions.stability import FEWEST, Kind, stability
from abl_hub.evaluation.detector import detect, threshold
from abl_hub.report.record import (
    AnalysisRecord,
    Detection,
    HarmAndExecution,
    Record,
    Separation,
)

_BINS = 30
_SHARES = 10


def described(
    record: Record, direction: Direction, train: Samples, test: Samples
) -> AnalysisRecord:
    """What activations alone tell; what it takes the model to tell is filled in later."""
    one, other = train.positive[:, :, -1], train.negative[:, :, -1]
    means = mean_difference(one, other)
    ordinary = other.double().mean(0)
    enough = min(len(one), len(other)) >= FEWEST
    apart = separation(one, other).tolist() if enough else [None] * len(means)
    kind = Kind.of(direction)
    spectra = [
        spectrum(without(paired(train, layer, record.recipe.seed), ordinary[layer]))
        for layer in range(len(means))
    ]
    geometry = tuple(
        LayerGeometry(
            layer=layer,
            norm=float(means[layer].norm()),
            to_ordinary=float(
                means[layer] @ ordinary[layer] / means[layer].norm() / ordinary[layer].norm()
            ),
            separation=apart[layer],
            effective_rank=spectra[layer].effective_rank,
        )
        for layer in range(len(means))
    )
    return AnalysisRecord(
        separation=_separation(direction, test),
        detection=detection(train, test),
        stability=stability(
            train.positive[:, :, kind.position],
            train.negative[:, :, kind.position],
            direction.layer,
            kind,
            seed=record.recipe.seed,
        ),
        geometry=geometry,
        cosines=tuple(tuple(row) for row in cosines(means)),
        shares=spectra[direction.layer].shares[:_SHARES],
        residual=(),
        spread=False,
        harm=HarmAndExecution(
            layer=direction.layer,
            cosine=0.0,
            base=0.0,
            without_harm=0.0,
            without_execution=0.0,
        ),
    )


def paired(train: Samples, layer: int, seed: int) -> torch.Tensor:
    return train.paired_differences(seed)[:, layer, -1].double()


def _separation(direction: Direction, test: Samples) -> Separation:
    # A direction that was read over replies (position 0) is shown at the prompt's last token.
    position = direction.position or -1
    along = [
        side[:, direction.layer, position].double() @ direction.vector
        for side in (test.positive, test.negative)
    ]
    both = torch.cat(along)
    low, high = float(both.min()), float(both.max())
    edges = torch.linspace(low, max(high, low + 1e-6), _BINS + 1, dtype=torch.float64)
    counts = [torch.histogram(side, edges).hist.int().tolist() for side in along]
    return Separation(
        edges=tuple(edges.tolist()), positive=tuple(counts[0]), negative=tuple(counts[1])
    )


def detection(train: Samples, test: Samples) -> tuple[Detection, ...]:
    """Each layer's difference in means of `train` at the last token as a detector, on `test`."""
    found = []
    for layer in range(train.positive.shape[1]):
        seen = (train.positive[:, layer, -1].double(), train.negative[:, layer, -1].double())
        held_out = (test.positive[:, layer, -1].double(), test.negative[:, layer, -1].double())
        axis = seen[0].mean(0) - seen[1].mean(0)
        at = threshold((seen[0] @ axis).tolist(), (seen[1] @ axis).tolist())
        detector = detect((held_out[0] @ axis).tolist(), (held_out[1] @ axis).tolist(), at)
        found.append(Detection(layer=layer, detector=detector))
    return tuple(found)
