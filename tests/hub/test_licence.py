"""What a card says of the licence, and what it asks."""

from __future__ import annotations

import pytest

from abl_hub.hub.licence import duties, forbids_derivatives, read_licence


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


def test_duties_name_themselves():
    assert any("Built with Llama" in duty for duty in duties("llama3.2"))
    assert not any("Built with Llama" in duty for duty in duties("llama2"))
    assert any("Gemma Terms of Use" in duty for duty in duties("gemma"))
    assert any("commercial" in duty for duty in duties("cc-by-nc-sa-4.0"))
    assert duties("wtfpl") == ()
    (asked,) = duties(None)
    assert "no licence" in asked
