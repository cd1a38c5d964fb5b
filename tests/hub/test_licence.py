"""What a card says of the licence, and what it asks."""

from __future__ import annotations

import pytest

from abl_hub.hub.licence import (
    duties,
    forbids_derivatives,
    named_as_asked,
    notice_file,
    notices,
    read_licence,
)


def test_the_licence_and_its_files_are_carried():
    card = {"license": "other", "license_name": "llama3.1", "license_link": "LICENSE"}
    paths = ["LICENSE.txt", "USE_POLICY.md", "Notice", "config.json", "docs/LICENSE"]
    licence = read_licence(card, paths)
    assert (licence.id, licence.name, licence.link) == ("other", "llama3.1", "LICENSE")
    assert licence.files == ("LICENSE.txt", "Notice", "USE_POLICY.md")
    assert read_licence({}, []).id is None
    assert read_licence({"license": ["mit", "cc-by-nd-4.0"]}, []).id == "mit, cc-by-nd-4.0"


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [
        ("cc-by-nd-4.0", True),
        ("cc-by-nc-nd-3.0", True),
        ("mit, cc-by-nd-4.0", True),
        ("cc-by-nc-4.0", False),
        ("cc-by-sa-4.0", False),
        ("apache-2.0", False),
        (None, False),
    ],
)
def test_no_derivatives(licence: str | None, forbidden: bool):
    assert forbids_derivatives(licence) is forbidden
    if licence is not None:
        assert forbids_derivatives("other", licence.upper()) is (forbidden and "," not in licence)


@pytest.mark.parametrize(
    ("licence", "name", "shown", "notice"),
    [
        ("llama3", None, "Built with Meta Llama 3", "Meta Llama 3 is licensed under the Meta"),
        ("llama3.2", None, "Built with Llama", "Llama 3.2 is licensed under the Llama 3.2"),
        ("other", "llama-3.1", "Built with Llama", "Llama 3.1 is licensed"),
        ("llama2", None, None, "Llama 2 is licensed under the LLAMA 2"),
        ("gemma", None, None, "Gemma is provided under and subject to"),
        ("other", "qwen-research", "Improved using Qwen", "Qwen RESEARCH LICENSE"),
        ("apache-2.0", None, None, None),
        ("other", "some-licence", None, None),
    ],
)
def test_what_must_be_shown(
    licence: str, name: str | None, shown: str | None, notice: str | None
) -> None:
    assert notices(licence, name) == ((shown,) if shown else ())
    text = notice_file(licence, name)
    assert (text is None) is (notice is None)
    assert (notice or "") in (text or "")


@pytest.mark.parametrize(
    ("licence", "name", "given", "asked"),
    [
        ("llama3", None, "Meta-Llama-3-8B-Instruct", "Llama-3-8B-Instruct"),
        ("llama3", None, "tuned", "Llama-3-tuned"),
        ("llama3.2", None, "Llama-3.2-1B", "Llama-3.2-1B"),
        ("other", "llama3.1", "tuned", "Llama-tuned"),
        ("llama2", None, "tuned", "tuned"),
        ("mit", None, "tuned", "tuned"),
    ],
)
def test_a_name_begins_as_the_licence_wants(
    licence: str, name: str | None, given: str, asked: str
) -> None:
    assert named_as_asked(given, licence, name) == asked
    assert not any("has to begin" in duty for duty in duties(licence, name, repo=f"me/{asked}"))
    missing = any("has to begin" in duty for duty in duties(licence, name, repo=f"me/{given}"))
    assert missing is (given != asked)


def test_duties_name_themselves():
    assert any("safety measures" in duty for duty in duties("llama3.2"))
    assert not any("safety measures" in duty for duty in duties("llama3.1"))
    assert any("Gemma Terms of Use" in duty for duty in duties("gemma"))
    assert any("commercial" in duty for duty in duties("cc-by-nc-sa-4.0"))
    assert any("guardrail" in duty for duty in duties("other", "nvidia-open-model-license"))
    assert duties("wtfpl") == ()
    (asked,) = duties(None)
    assert "no licence" in asked
