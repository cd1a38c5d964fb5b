"""Small chat models of four architectures, trained on the spot to refuse one harmless topic."""

from __future__ import annotations

from pathlib import Path

from abl_hub.demo.train import TrainingRecipe, demo_model

ARCHITECTURES = {
    "llama (the demo model)": "llama",
    "qwen2 (tied embeddings)": "qwen2",
    "gemma2 (norms after the writers)": "gemma2",
    "gpt2 (biases, Conv1D, learned positions)": "gpt2",
}


def trained_models() -> dict[str, Path]:
    """Name → folder; each is trained at the first call, in a minute or two, and kept."""
    return {
        name: demo_model(TrainingRecipe(architecture=architecture))
        for name, architecture in ARCHITECTURES.items()
    }
