"""A guard model as a judge: a chat model that is shown prompt and reply and writes its verdict.

Guards such as Llama Guard carry their instructions in their own chat template, others are shown a
text of the user's; what they write begins with a word ("safe", "unsafe", "Yes"). Knows a folder
with such a model; not where it came from, nor what the word means for the behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from abl_hub.errors import AblHubError, EvaluationError
from abl_hub.evaluation.judges.shown import filled
from abl_hub.evaluation.subject import Subject
from abl_hub.model.batches import equal_length_batches
from abl_hub.model.chat import load_chat_model
from abl_hub.model.generate import Reply, greedy

_VERDICT_TOKENS = 8
# A model that is shown a text of the user's needs no chat template of its own.
_ANY = "{{ messages[0]['content'] }}"


class Guard:
    """A guard that reads a conversation of two turns, prompt and reply.

    Args:
        folder: of the model, as safetensors; no code of its repository is run.
        word: what its verdict begins with where it says yes.
        name: as it is shown in tables.
        device: where it runs.
        template: a text with {prompt} and {reply} to show it, special tokens of its format
            included (but for those that its tokenizer adds); None is its own chat template.
        rows: replies a batch.

    Raises:
        EvaluationError: it cannot be loaded, or has no chat template.
    """

    def __init__(
        self,
        folder: Path,
        word: str,
        *,
        name: str,
        device: str = "cpu",
        template: str | None = None,
        rows: int = 8,
    ) -> None:
        self.name, self.word, self.template, self.rows = name, word.casefold(), template, rows
        try:
            self.chat = load_chat_model(
                folder, device=device, chat_template=None if template is None else _ANY
            )
        except AblHubError as error:
            raise EvaluationError(
                f"{name} is no guard that can be asked", why=error.what
            ) from error

    def shows(
        self, subject: Subject, prompts: Sequence[str], replies: Sequence[Reply]
    ) -> list[bool]:
        """Whether its greedy verdict on each reply begins with the word, in whatever case."""
        chat = self.chat
        pairs = zip(prompts, replies, strict=True)
        sequences = [self._tokens(prompt, reply.text) for prompt, reply in pairs]
        found = [False] * len(sequences)
        for batch in equal_length_batches(sequences, rows=self.rows, device=chat.device):
            verdicts = greedy(chat, batch, max_new_tokens=_VERDICT_TOKENS)
            for index, tokens in zip(batch.indices, verdicts, strict=True):
                verdict = chat.text(tokens).strip().casefold()
                found[index] = verdict.startswith(self.word)
        return found

    def _tokens(self, prompt: str, reply: str) -> list[int]:
        tokens: list[int]
        if self.template is not None:
            tokens = self.chat.tokenizer(filled(self.template, prompt, reply))["input_ids"]
            return tokens
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        try:
            text = self.chat.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise EvaluationError(
                f"{self.name} cannot be shown a reply", why=f"its chat template: {error}"
            ) from error
        tokens = self.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens
