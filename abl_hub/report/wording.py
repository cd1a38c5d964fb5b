"""Labels of a record → what they mean for somebody who reads a card. Words only."""

from __future__ import annotations

from collections.abc import Mapping

VERDICTS: Mapping[str, str] = {
    "SUPPORTED": "Removing the direction takes {behaviour} away, adding it brings {behaviour} "
    "about, and a random direction does neither",
    "SUPPRESSION-ONLY": "Removing the direction takes {behaviour} away and a random direction does "
    "not; that adding it brings {behaviour} about was not shown",
    "NOT-SEPARATED-FROM-RANDOM": "A random direction of the same norm does nearly the same, so "
    "this is no evidence that the direction found is the cause",
    "TOO-FEW-PROMPTS": "Too few prompts were asked to tell what was found from chance",
    "NOT-SUPPRESSED": "The edited model still shows {behaviour}: the edit does not do what it is "
    "for",
    "NON-ANSWERS": "Many replies of the edited model are no answers: do not use it",
    "NO-BASELINE-REFUSAL": "The unedited model hardly shows {behaviour}, so there was little to "
    "remove",
}

ADDED_VERDICTS: Mapping[str, str] = {
    "SUPPORTED": "Adding the direction brings {behaviour} about on prompts that did not show it, "
    "and a random direction does not",
    "NOT-SEPARATED-FROM-RANDOM": "A random direction of the same length does nearly the same, so "
    "this is no evidence that the direction found is the cause",
    "TOO-FEW-PROMPTS": "Too few prompts were asked to tell what was found from chance",
    "NOT-INDUCED": "The edited model hardly shows more of {behaviour}: the edit does not do what "
    "it is for",
    "NON-ANSWERS": "Many replies of the edited model are no answers: do not use it",
}

EXACTNESS: Mapping[str, str] = {
    "exact": "exact: every edited tensor is changed by its projection on the direction alone, "
    "nothing is approximated",
    "exact null, rescaled": "exact null, rescaled: the component along the direction is removed "
    "exactly; behind post-norms the rest is rescaled by a factor for each token",
    "added": "added: a constant in the weights, the same for every token; nothing is removed and "
    "nothing is approximated",
    "head changed": "head changed: embedding and output head share one matrix and still do, so the "
    "head was edited with it",
}

METHODS: Mapping[str, str] = {
    "difference": "difference in means",
    "projected": "difference in means, without its part along the mean of the other prompts",
    "winsorized": "difference in means of clipped activations, without its part along the mean of "
    "the other prompts",
    "pca": "principal component of paired differences",
    "leace": "affine erasure (LEACE)",
    "svd": "leading singular directions of paired differences",
    "som": "directions from a self-organising map",
    "caa": "mean difference of paired completions",
    "rdo": "direction refined by gradient (RDO)",
    "cone": "concept cone refined by gradient",
    "category": "subspace of the categories' own directions",
    "harm": "difference in means at the instruction's own last token, without its part along the "
    "mean of the other prompts",
}

PROFILES: Mapping[str, str] = {
    "portable": "attention and MLP outputs only, one rank and one alpha, for transformers, PEFT, "
    "vLLM, SGLang and llama.cpp",
    "complete": "every tensor of the edit, for transformers and PEFT",
}
