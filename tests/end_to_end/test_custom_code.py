"""A repository with code of its own: fetched and run only where --trust-remote-code says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from abl_hub.cli.group import abl_hub
from abl_hub.hub.local import LocalHub
from tests.chat_models import save_chat_model

CONFIGURATION = """
from transformers import LlamaConfig

class SpellConfig(LlamaConfig):
    model_type = "spellwright"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_spell import SpellConfig

class SpellForCausalLM(LlamaForCausalLM):
    config_class = SpellConfig
"""


def test_a_plan_and_a_trace_run_it_when_asked(
    local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "spell")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "spellwright", "architectures": ["SpellForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_spell.SpellConfig",
        "AutoModelForCausalLM": "modeling_spell.SpellForCausalLM",
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "configuration_spell.py").write_text(CONFIGURATION)
    (model / "modeling_spell.py").write_text(MODELING)
    api = HfApi(endpoint=local_hub.endpoint, token=local_hub.token)
    repo = api.create_repo("custom-code-spell").repo_id
    api.upload_folder(folder_path=model, repo_id=repo)
    monkeypatch.setenv("HF_ENDPOINT", local_hub.endpoint)
    known = ["--token", local_hub.token, "--cache-dir", str(tmp_path / "cache")]
    for words in (["trace", repo, *known], ["convert", repo, "--dry-run", *known]):
        result = CliRunner().invoke(abl_hub, words)
        assert result.exit_code == 1, result.output
        assert "bug in abl-hub" not in result.stderr
        result = CliRunner().invoke(abl_hub, [*words, "--trust-remote-code"])
        assert result.exit_code == 0, (result.stderr, result.exception)
        assert "SpellForCausalLM" in result.stdout
