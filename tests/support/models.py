"""Tiny random models of real architectures, a short demo, and what some versions of torch and transformers lack."""

from dataclasses import fields

import pytest
import torch
import transformers

from hf_farms.loading.opening import load_model

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no torch.optim.Muon")
NEEDS_COMPILE = pytest.mark.skipif(
    torch.__version__ < "2.7", reason="torch 2.6 cannot compile models of transformers 5.17"
)
# transformers renamed the arguments of TrainingArguments.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(transformers.TrainingArguments)}
)

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def tiny(family, *, dtype=torch.float32, seed=0, **changes):
    torch.manual_seed(seed)
    name = FAMILIES[family]
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, **changes}
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForCausalLM")(config).to(dtype).eval()


def tiny_opt(seed=0):
    torch.manual_seed(seed)
    config = transformers.OPTConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
    )
    return transformers.OPTForCausalLM(config).eval()


def tiny_bert(seed=0):
    torch.manual_seed(seed)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval()


def save_short_demo(folder, num_blocks):
    """Write the first blocks of the demo model with its tokenizer into a folder, and return its path."""
    loaded = load_model("demo")
    loaded.model.model.layers = loaded.model.model.layers[:num_blocks]
    loaded.model.config.num_hidden_layers = num_blocks
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder)
    return str(folder)
