"""What a model as a judge is shown, where it has an input format of its own: a text with places.

Knows text; no model.
"""

from __future__ import annotations

import re

from abl_hub.errors import EvaluationError

_PLACE = re.compile(r"\{(prompt|reply)\}")


def check_template(template: str) -> None:
    """Refuse a template that shows no reply.

    Raises:
        EvaluationError: it has no {reply}.
    """
    if "{reply}" not in template:
        raise EvaluationError(
            "The judge's template shows no reply",
            next_step="Write {reply} where the reply is to stand, and {prompt} for the prompt",
        )


def filled(template: str, prompt: str, reply: str) -> str:
    """`template` with what was asked and said; braces in those are left as they are."""
    said = {"prompt": prompt, "reply": reply}
    return _PLACE.sub(lambda found: said[found[1]], template)
