"""One file a method, one registry: evidence → proposals, each at its layer and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from abl_hub.directions.evidence import Evidence
from abl_hub.directions.methods import (
    caa,
    category,
    difference,
    harm,
    leace,
    pca,
    projected,
    rdo,
    som,
    successive,
    svd,
    winsorized,
)
from abl_hub.directions.proposal import Proposal

Method = Callable[[Evidence], list[Proposal]]

NEED_RANK = frozenset({"svd", "som", "successive", "cone", "category"})
"""Methods that remove two directions or more, and propose nothing at `--rank 1`."""

METHODS: Mapping[str, Method] = {
    "projected": projected.propose,
    "difference": difference.propose,
    "winsorized": winsorized.propose,
    "pca": pca.propose,
    "leace": leace.propose,
    "svd": svd.propose,
    "som": som.propose,
    "successive": successive.propose,
    "caa": caa.propose,
    "rdo": rdo.propose,
    "cone": rdo.propose_cone,
    "category": category.propose,
    "harm": harm.propose,
}
