"""Tiny repositories, and how to put them on a Hub with the real client."""

from __future__ import annotations

import json
import struct

from huggingface_hub import CommitOperationAdd, HfApi

SENTINEL = "hf_SENTINELsentinelSENTINELsentinel00"
"""A token whose text must appear nowhere."""


def safetensors(seed: int = 0) -> bytes:
    """A valid safetensors file with one tensor of two float32 values."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + struct.pack("<2f", seed, seed + 0.5)


MODEL_FILES: dict[str, bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache License",
    "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
    "model.safetensors": safetensors(),
}


def put(api: HfApi, repo_id: str, files: dict[str, bytes], *, kind: str = "model") -> str:
    """Commit `files` to a private repository, made when missing; the commit's hash."""
    api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
    operations = [CommitOperationAdd(path_in_repo=p, path_or_fileobj=c) for p, c in files.items()]
    done = api.create_commit(repo_id, operations, commit_message="Add files", repo_type=kind)
    return done.oid
