"""Tiny random models of every family whose layers are known, and what their blocks hold."""

import torch
import transformers

from hf_farms.blocks import ModelBlockSource

C = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
G = {**C, "num_key_value_heads": 2, "head_dim": 8}
# Multi-head latent attention.
L = {**C, "num_key_value_heads": 4, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
E = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
FALCON = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = {**FALCON, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
DISTIL = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
VIT = {key: value for key, value in C.items() if key != "vocab_size"}
JAMBA = {key: value for key, value in G.items() if key != "head_dim"}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}

ATTENTION, DENSE, SMALL = ["q", "k", "v", "o"], ["gate", "up", "down"], ["up", "down"]
SHARED = ["shared_gate", "shared_up", "shared_down"]
MLA = ["q", "kv_a", "kv_b", "o"]


def _experts(count):
    return ["gate", "up"] * count + ["down"] * count


# name: (model class, config class, options, roles of the first block, roles of the last block)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "Llama", G, ATTENTION + DENSE, ATTENTION + DENSE),
    "mistral": ("MistralForCausalLM", "Mistral", G, ATTENTION + DENSE, ATTENTION + DENSE),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2", {**C, "num_key_value_heads": 2}, ATTENTION + DENSE, ATTENTION + DENSE),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3", G, ATTENTION + DENSE, ATTENTION + DENSE),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2", G, ATTENTION + DENSE, ATTENTION + DENSE),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3Text", G, ATTENTION + DENSE, ATTENTION + DENSE),
    "phi3": ("Phi3ForCausalLM", "Phi3", {**G, "pad_token_id": 0}, ATTENTION + DENSE, ATTENTION + DENSE),
    "gpt2": ("GPT2LMHeadModel", "GPT2", GPT2, ATTENTION + SMALL, ATTENTION + SMALL),
    "opt": ("OPTForCausalLM", "OPT", OPT, ATTENTION + SMALL, ATTENTION + SMALL),
    "bert": ("BertForMaskedLM", "Bert", C, ATTENTION + SMALL, ATTENTION + SMALL),
    "roberta": ("RobertaForMaskedLM", "Roberta", C, ATTENTION + SMALL, ATTENTION + SMALL),
    "distilbert": ("DistilBertForMaskedLM", "DistilBert", DISTIL, ATTENTION + SMALL, ATTENTION + SMALL),
    "vit": (
        "ViTForImageClassification",
        "ViT",
        {**VIT, "image_size": 16, "patch_size": 8},
        ATTENTION + SMALL,
        ATTENTION + SMALL,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoX", C, ATTENTION + SMALL, ATTENTION + SMALL),
    "falcon": (
        "FalconForCausalLM",
        "Falcon",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
        ATTENTION + SMALL,
        ATTENTION + SMALL,
    ),
    "falcon_multi_query": (
        "FalconForCausalLM",
        "Falcon",
        {**FALCON, "multi_query": True},
        ATTENTION + SMALL,
        ATTENTION + SMALL,
    ),
    "falcon_old": (
        "FalconForCausalLM",
        "Falcon",
        {**FALCON, "multi_query": False, "alibi": True},
        ATTENTION + SMALL,
        ATTENTION + SMALL,
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": True},
        ATTENTION + DENSE,
        ATTENTION + [f"cross_{role}" for role in ATTENTION] + DENSE,
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "Mixtral",
        {**G, "num_local_experts": 4},
        [*ATTENTION, "router", *_experts(4)],
        [*ATTENTION, "router", *_experts(4)],
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3Moe",
        {**G, **E, "num_experts": 4, "decoder_sparse_step": 1, "mlp_only_layers": [0]},
        ATTENTION + DENSE,
        [*ATTENTION, *_experts(4), "router"],
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOss",
        {**G, "num_local_experts": 4},
        [*ATTENTION, "router", *_experts(4)],
        [*ATTENTION, "router", *_experts(4)],
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        "Llama4Text",
        {**G, "num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
        ATTENTION + DENSE,
        [*ATTENTION, *_experts(4), "router", *SHARED],
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        "DeepseekV2",
        {
            **L,
            **E,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        MLA + DENSE,
        [*MLA, *_experts(4), "router", *SHARED],
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3",
        {**L, **E, "q_lora_rank": 16, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
        ["q_a", "q_b", *MLA[1:], *DENSE],
        ["q_a", "q_b", *MLA[1:], *_experts(4), "router", *SHARED],
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3",
        {
            "text_config": {**G, "model_type": "gemma3_text"},
            "vision_config": {
                **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
                **{"image_size": 28, "patch_size": 14},
            },
        },
        ATTENTION + DENSE,
        ATTENTION + DENSE,
    ),
    "qwen3_vl": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VL",
        {
            "text_config": {**G, "model_type": "qwen3_vl_text"},
            "vision_config": {
                **{"hidden_size": 16, "intermediate_size": 24, "depth": 3, "num_heads": 2, "out_hidden_size": 32},
                "deepstack_visual_indexes": [1],
            },
        },
        ATTENTION + DENSE,
        ATTENTION + DENSE,
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        "Qwen3Next",
        {**G, **E, **DELTA, "num_hidden_layers": 4, "num_experts": 4, "shared_expert_intermediate_size": 24},
        [
            *("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba", "linear_attn.out_proj"),
            *("router", *_experts(4), *SHARED, "mlp.shared_expert_gate"),
        ],
        [*ATTENTION, "router", *_experts(4), *SHARED, "mlp.shared_expert_gate"],
    ),
    "jamba": (
        "JambaForCausalLM",
        "Jamba",
        {
            **JAMBA,
            **{"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4},
            "use_mamba_kernels": False,
        },
        ["mamba.in_proj", "mamba.x_proj", "mamba.dt_proj", "mamba.out_proj", *DENSE],
        [*ATTENTION, "router", *_experts(2)],
    ),
    "mamba": (
        "MambaForCausalLM",
        "Mamba",
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2},
        ["mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"],
        ["mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"],
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"},
        ["layer.0.convolution", "layer.1.convolution"],
        ["layer.0.convolution", "layer.1.convolution"],
    ),
}


def family_model(name, *, seed=0):
    """A random model, every weight different from 0 (some experts start as zeros or uninitialized)."""
    torch.manual_seed(seed)
    model, config, options, *_ = FAMILIES[name]
    built = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**options)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.1)
    return built


def roles_of(name):
    """Roles in the first and in the last block."""
    *_, first, last = FAMILIES[name]
    return first, last


def layers_of(model):
    """The layers that are pruned, of all blocks."""
    source = ModelBlockSource(model)
    return [x for i in range(len(source)) for x in source.open(i).layers if x.role != "router"]
