"""Tiny models of every architecture that transformers can build small, with weights that matter.

Random initialisation hides wrong code: norm gains are all one, biases all zero, and what the blocks
write is too quiet to be seen. Here gains and biases are drawn and the matrices made louder.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WIDTH = 64
LAYERS = 4

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "n_embed", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 96
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "seq_length"), 128),
    "vocab_size": 256,
    "head_dim": 16,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "sliding_window": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
    "mamba_expand": 2,
    "mamba_d_ssm": 128,
    "mamba_dt_rank": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rotary_dim": 8,
    "router_aux_loss_coef": 0.0,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
_HYBRID = ["linear_attention", "full_attention"] * 2
_LATENT = {"head_dim": 8, "qk_head_dim": 24, "num_key_value_heads": 4}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.25,
    "logits_scaling": 2.0,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        **_LATENT,
        "layer_types": _HYBRID,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "num_expert_group": 1,
        "topk_group": 1,
        "num_experts_per_token": 2,
        "num_nextn_predict_layers": 0,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "head_dim": 16,
        "layer_types": _ALTERNATING,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": WIDTH,
            "ffn_hidden_size": 96,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "dots1": {
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5,
    },
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "deepseek_v2": {
        **_LATENT,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
    },
    "gemma3n_text": {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 256,
        "num_kv_shared_layers": 1,
        "laurel_rank": 8,
        "layer_types": _ALTERNATING,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [96] * 4,
    },
    "gemma4_text": {
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 256,
        "num_kv_shared_layers": 1,
        "layer_types": _ALTERNATING,
        "global_head_dim": 16,
        "num_global_key_value_heads": 2,
    },
    "granite": _GRANITE,
    "granitemoehybrid": {
        **_GRANITE,
        "layer_types": _HYBRID,
        "shared_intermediate_size": 64,
        "position_embedding_type": "rope",
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "kimi_linear": {
        **_LATENT,
        "layer_types": _HYBRID,
        "num_experts_per_token": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {**_LATENT, "expert_ffn_hidden_size": 48, "zero_expert_num": 2},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
        "chunk_size": 4,
        "expand": 2,
    },
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "layer_types": [*["linear_attention"] * 3, "indexed_attention"],
        "hc_count": 2,
        "hc_lowrank": 16,
        "ple_embed_dim": WIDTH,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local"] * LAYERS,
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 4,
    },
    "rwkv": {"attention_hidden_size": 64},
    "xlm": {"emb_dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "n_words": 256, "causal": True},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "kv_channels": 16,
        "num_query_groups": 4,
        "mamba_d_state": 8,
        "chunk_size": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid"] * 4, "router_hidden_size": 16},
    **{name: {"head_dim": 16} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **dict.fromkeys(
        (
            "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "hy_v4",
            "minicpm3", "youtu", "mistral4", "axk1", "axk2",
        ),
        _LATENT,
    ),
}  # fmt: skip

# What some vision towers call their sizes, and rotary sections that fit a head of 16.
_SMALL_VISION = {
    "depth": 2,
    "num_heads": 4,
    "hidden_size": WIDTH,
    "embed_dim": WIDTH,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 16,
}
_SECTIONED = ("qwen2_vl", "qwen2_5_vl", "glm4v")

# Wrappers of several modalities, registered as causal too; they are built from their own defaults.
WRAPPERS = (
    "llava", "llava_next", "llava_onevision", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl",
    "gemma3", "mistral3", "internvl", "idefics3", "smolvlm", "aya_vision", "vipllava", "glm4v",
    "llama4", "qwen3_5", "qwen3_5_moe", "mllama", "emu3", "fuyu", "got_ocr2",
)  # fmt: skip
# Registered as causal language models, but our small configuration leaves them large or broken.
NOT_SMALL = frozenset(
    (
        "blt", "gemma3n", "gemma4", "gemma4_unified", "gemma4_unified_assistant",
        "moss_transcribe_diarize", "phi4_multimodal", "qwen4_exp",
    )
)  # fmt: skip
CAUSAL = tuple(sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_SMALL - set(WRAPPERS)))


def tiny_config(model_type: str) -> Any:
    """A small configuration of one architecture."""
    defaults = AutoConfig.for_model(model_type).to_dict()
    own = _OWN.get(model_type, {})
    small = {
        name: value
        for name, value in _SMALL.items()
        if defaults.get(name) is not None or (name == "n_inner" and name in defaults)
    }
    try:
        config = AutoConfig.for_model(model_type, **{**small, **own})
        for name, value in own.items():
            nested = isinstance(getattr(config, name, None), PretrainedConfig)
            if not nested and getattr(config, name, None) != value:
                setattr(config, name, value)
    except (ValueError, TypeError, KeyError, AttributeError):
        config = _shrunk(AutoConfig.for_model(model_type), {**small, **own})
    return config


def _shrunk(config: Any, small: dict[str, Any]) -> Any:
    """For configurations that check themselves before they are small all over."""
    for name, value in small.items():
        setattr(config, name, value)
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) > LAYERS:
            setattr(config, name, (list(dict.fromkeys(kinds)) * LAYERS)[:LAYERS])
    return config


def tiny_wrapper_config(model_type: str) -> Any:
    """A multimodal wrapper around small text and vision configurations."""
    config = AutoConfig.for_model(model_type)
    for part in ("text_config", "vision_config"):
        own = getattr(config, part, None)
        if own is None:
            continue
        for name, value in _SMALL.items():
            if name != "vocab_size" and getattr(own, name, None) is not None:
                setattr(own, name, value)
        kinds = getattr(own, "layer_types", None)
        if isinstance(kinds, list | tuple) and len(kinds) > LAYERS:
            own.layer_types = (list(dict.fromkeys(kinds)) * LAYERS)[:LAYERS]
    if model_type in _SECTIONED:
        config.text_config.rope_parameters = {**_ROPE, "mrope_section": [2, 3, 3]}
        for name, value in _SMALL_VISION.items():
            if hasattr(config.vision_config, name):
                setattr(config.vision_config, name, value)
    return config


def build(model_type: str, *, seed: int = 0, wrapper: bool = False) -> Any:
    """A tiny model on the CPU, in float32, every gain and bias drawn."""
    torch.manual_seed(seed)
    auto: Any = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
    config = tiny_wrapper_config(model_type) if wrapper else tiny_config(model_type)
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif float(parameter.abs().max()) == 0:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif 0 < (spread := float(parameter.std())) < 0.06:
                parameter.mul_(min(5.0, 0.1 / spread))
    return model


def tokens(model: Any) -> torch.Tensor:
    """Two short sequences that every tokenizer size allows, (2, 9)."""
    vocabulary = min(200, int(model.config.get_text_config().vocab_size))
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, vocabulary, (2, 9), generator=generator)
