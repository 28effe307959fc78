"""A tiny random model of every family in transformers' own auto mappings, made from its config class alone.

Every size that a config class has gets a small value by its name; lists with an entry for every layer are cut to one
layer of each kind. What a family needs beside that stands in `NEEDS`.
"""

from __future__ import annotations

import torch
from transformers.models.auto import modeling_auto

MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "multimodal": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
}

# Value -> names of the sizes that get it.
SIZES = {
    100: "vocab_size text_vocab_size n_vocab vocab_size_per_layer_input unpadded_vocab_size patch_vocab_size "
    "vocab_size_or_config_json_file",
    32: "hidden_size d_model n_embd dim embed_dim emb_dim word_embed_proj_dim embedding_size "
    "attention_hidden_size input_dim decoder_hidden_size model_dim",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth "
    "num_experts_per_tok num_experts_per_token moe_topk top_k_experts moe_k experts_per_token moe_top_k "
    "num_selected_experts n_group linear_num_key_heads num_key_value_heads attention_groups n_groups "
    "mamba_n_groups num_key_value_groups n_kv_heads num_kv_heads multi_query_group_num mamba_num_groups "
    "num_lightning_kv_heads swa_num_key_value_heads",
    1: "topk_group first_k_dense_replace moe_layer_freq n_shared_experts num_shared_experts "
    "num_shared_expert topk_groups num_dense_layers decoder_sparse_step moe_layer_start_index "
    "num_nextn_predict_layers",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "linear_num_value_heads mamba_d_conv conv_kernel d_conv num_encoder_attention_heads "
    "num_decoder_attention_heads mamba_n_heads mamba_num_heads decoder_num_heads swa_num_attention_heads "
    "qk_rope_head_dim rope_head_dim",
    8: "head_dim d_kv kv_channels linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim "
    "mamba_d_state ssm_state_size state_size attention_head_dim qk_head_dim v_head_dim qk_nope_head_dim "
    "mamba_headdim d_head head_size per_layer_input_hidden swa_head_dim global_head_dim",
    12: "kv_lora_rank time_step_rank mamba_dt_rank",
    6: "num_experts n_routed_experts num_local_experts moe_num_experts",
    16: "q_lora_rank image_size chunk_size mamba_chunk_size sliding_window attention_window max_window_size "
    "window_size index_head_dim local_attn_chunk_length linear_head_dim sliding_window_size rel_extent "
    "d_rel hc_lowrank ple_embed_dim ngram_vocab_size_base hidden_size_per_layer_input",
    48: "intermediate_size ffn_dim n_inner d_ff encoder_ffn_dim decoder_ffn_dim d_inner intermediate_size_mlp "
    "mlp_dim decoder_intermediate_size ffn_hidden_size hidden_dim",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size shared_intermediate_size",
    128: "max_position_embeddings n_positions n_ctx max_target_positions max_source_positions max_seq_len "
    "context_length block_size",
}
BY_NAME = {name: value for value, names in SIZES.items() for name in names.split()}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
NO_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")

# Four stages of a vision model.
STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
# What a family cannot do without, beside small sizes.
LATENT = {"num_key_value_heads": 4, "head_dim": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_d_state": 8}
NEEDS = {
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": LATENT,
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "bit": {"embedding_size": 32, **STAGES, "hidden_sizes": [32, 32, 64, 64], "num_groups": 8},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "chinese_clip_vision_model": {"patch_size": 8},
    "clip_vision_model": {"patch_size": 8},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": ["full_attention"] * 2},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "cpmant": {"prompt_length": 4, "prompt_types": 8, "position_bias_num_buckets": 8},
    "deepseek_v2": {**LATENT, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "donut-swin": {"embed_dim": 12, "depths": [1, 1], "num_heads": [3, 6], "window_size": 2, "patch_size": 2},
    "dory": {"num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2},
    "dots1": {"n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {**LATENT, "head_dim": 12},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "ssm_multipliers": [0.5, 0.25, 2.0, 3.0, 0.1]},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
    "gemma3n_text": {
        **{"layer_types": ["sliding_attention", "full_attention"] * 2, "intermediate_size": [48] * 4},
        **{"num_hidden_layers": 4, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.5, 0.0] * 2},
    },
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "hiera": {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": [32, 32], "num_heads": [1, 2, 4, 8]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 6},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "kimi_linear": LATENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
    "longcat_flash": {**LATENT, "qk_head_dim": 12, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "metaclip_2_vision_model": {"patch_size": 8},
    "minicpm3": LATENT,
    "ministral": {"head_dim": 8},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16]},
    "mobilevitv2": {"width_multiplier": 0.5},
    "nemotron": {"num_key_value_heads": 2},
    "poolformer": STAGES,
    "pvt": {"hidden_sizes": [8, 16, 40, 64], "image_size": 64},
    "pvt_v2": {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 16},
    "reformer": {
        **{"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 8]},
        **{"axial_pos_embds_dim": [16, 16], "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8},
        **{"attention_head_size": 8, "feed_forward_size": 48, "num_buckets": 4},
    },
    "regnet": {**STAGES, "groups_width": 8},
    "resnet": {"embedding_size": 8, **STAGES},
    "roc_bert": {
        **{"pronunciation_embed_dim": 16, "pronunciation_vocab_size": 20, "shape_embed_dim": 16},
        "shape_vocab_size": 20,
    },
    "sarvam_mla": LATENT,
    "segformer": {**STAGES, "hidden_sizes": [8, 16, 40, 64]},
    "swiftformer": {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 12, "depths": [1, 1], "num_heads": [3, 6], "window_size": 2, "patch_size": 2},
    "swinv2": {"embed_dim": 12, "depths": [1, 1], "num_heads": [3, 6], "window_size": 2, "patch_size": 2},
    "xlstm": {"embedding_dim": 32, "num_blocks": 2, "num_heads": 4, "chunk_size": 16, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "youtu": LATENT,
    "zamba": {
        **{"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        **{"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_key_value_heads": 4},
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {
        **{"num_mem_blocks": 1, "n_mamba_heads": 8, "mamba_headdim": 8, "attention_hidden_size": 64},
        **{"attention_head_dim": 16, "kv_channels": 8, "mamba_ngroups": 1, "adapter_rank": 4, "num_query_groups": 4},
        **{"num_hidden_layers": 4, "num_key_value_heads": 4},
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16, "layer_types": ["hybrid"] * 2},
}


class NotTiny(Exception):  # noqa: N818 - a reason, not an error
    """Why a family is not built."""


def tiny_config(config_class, *, vision=False):
    """A config of this class with small sizes."""
    default = config_class()
    needs = NEEDS.get(config_class.model_type, {})
    options, chosen = {}, _chosen_layers(default)
    mapped = getattr(config_class, "attribute_map", {})
    sub = getattr(config_class, "sub_configs", {})
    for name, value in default.to_dict().items():
        if name in sub:
            inner = getattr(default, name)
            if inner is not None:
                options[name] = tiny_config(type(inner), vision="vision" in name).to_dict()
            continue
        short = {v: k for k, v in mapped.items()}.get(name, name)
        if isinstance(value, bool):
            continue
        if isinstance(value, list | tuple) and chosen and len(value) == _depth(default):
            options[name] = [value[i] for i in chosen]
        elif isinstance(value, int | float) or (value is None and name in ("head_dim",)):
            for known in (name, short):
                if known in BY_NAME and value is not None:
                    options[name] = BY_NAME[known]
            if name in LAYERS or short in LAYERS:
                options[name] = max(2, len(chosen))
            if name in NO_TOKENS and value >= 100:
                options[name] = NO_TOKENS.index(name)
        elif name in NO_TOKENS and isinstance(value, list):
            options[name] = 2
    return config_class(**{**options, **needs})


def _depth(config):
    return next((getattr(config, name) for name in LAYERS if isinstance(getattr(config, name, None), int)), 0)


def _chosen_layers(config):
    """The first layer of each kind, at least two of them."""
    depth = _depth(config)
    kinds = [v for v in config.to_dict().values() if isinstance(v, list | tuple) and len(v) == depth and depth > 2]
    if not kinds:
        return []
    keys = [tuple(repr(kind[i]) for kind in kinds if len(set(map(repr, kind))) < 5) for i in range(depth)]
    first = sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values())
    return first if len(first) > 1 else [0, depth - 1]


def families(kind="causal"):
    """Model types of a mapping, with the classes of config and model."""
    mapping = getattr(modeling_auto, MAPPINGS[kind])
    found = {}
    for config_class in mapping:
        model_class = mapping[config_class]
        model_class = model_class[0] if isinstance(model_class, tuple) else model_class
        found[config_class.model_type] = (config_class, model_class)
    return found


def build(config_class, model_class, *, most=3_000_000):
    """A random model, every weight different from 0.

    Raises:
        NotTiny: with the reason.
    """
    try:
        config = tiny_config(config_class)
        with torch.device("meta"):
            size = sum(p.numel() for p in model_class(config).parameters())
        if size > most:
            raise NotTiny(f"has {size:,} parameters with small sizes")
        torch.manual_seed(0)
        model = model_class(config).eval()
    except NotTiny:
        raise
    except Exception as error:
        raise NotTiny(f"{type(error).__name__}: {error}") from error
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model
