"""A contrast never judges a direction on what it was made from."""

from __future__ import annotations

import pytest

from abl_hub.directions.contrast import SplitSizes, make_contrast
from abl_hub.errors import ContrastError

POSITIVE = [f"How do I cast spell {i}?" for i in range(300)]
NEGATIVE = [f"How do I bake cake {i}?" for i in range(300)]


def test_the_paper_s_sizes_and_no_overlap() -> None:
    contrast = make_contrast(POSITIVE, NEGATIVE)
    for side in (contrast.positive, contrast.negative):
        assert (len(side.train), len(side.validation), len(side.test)) == (128, 32, 100)
        assert len({*side.train, *side.validation, *side.test}) == 260


def test_the_seed_decides_the_draw() -> None:
    first, again, other = (make_contrast(POSITIVE, NEGATIVE, seed=s) for s in (0, 0, 1))
    assert first.positive.digests() == again.positive.digests()
    assert first.positive.digests() != other.positive.digests()


def test_a_smaller_set_keeps_the_proportions() -> None:
    contrast = make_contrast(POSITIVE[:130], NEGATIVE)
    sizes = [len(getattr(contrast.positive, n)) for n in ("train", "validation", "test")]
    assert sizes == [64, 16, 50]
    assert len(contrast.negative.test) == 50


def test_a_set_with_splits_of_its_own_keeps_them() -> None:
    names = ["train"] * 200 + ["validation"] * 20 + ["test"] * 80
    parts = dict(zip(POSITIVE, names, strict=True))
    contrast = make_contrast(POSITIVE, NEGATIVE, parts=parts)
    for name in ("train", "validation", "test"):
        drawn = getattr(contrast.positive, name)
        assert {parts[prompt] for prompt in drawn} == {name}
        assert len(drawn) == len(getattr(contrast.negative, name))
    assert len(contrast.positive.validation) == 20
    assert len(contrast.positive.test) == 80
    # The other side is drawn as ever.
    assert contrast.negative.train == make_contrast(POSITIVE, NEGATIVE).negative.train
    with pytest.raises(ContrastError, match="has 20 validation prompts, 32 are needed"):
        make_contrast(POSITIVE, NEGATIVE, parts=parts, sizes=SplitSizes(test=80))


@pytest.mark.parametrize(
    ("positive", "negative", "sizes", "message"),
    [
        ([], NEGATIVE, None, "positive prompt set is empty"),
        (POSITIVE, [], None, "negative prompt set is empty"),
        ([*POSITIVE, " how do I  cast spell 1?"], NEGATIVE, None, "twice"),
        (POSITIVE, [*NEGATIVE, POSITIVE[3].upper()], None, "share 1 prompts"),
        (["café", "cafe\u0301", *POSITIVE], NEGATIVE, None, "twice"),
        (POSITIVE[:10], NEGATIVE, None, "has 10 different prompts, 16 are needed"),
        (POSITIVE, NEGATIVE, SplitSizes(train=290), "has 300 different prompts, 422 are needed"),
    ],
)
def test_unfair_contrasts_are_refused(
    positive: list[str], negative: list[str], sizes: SplitSizes | None, message: str
) -> None:
    with pytest.raises(ContrastError, match=message):
        make_contrast(positive, negative, sizes=sizes)
