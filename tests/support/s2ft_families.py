"""The families that S2FT trains, with their roles, and selections of them."""

from hf_farms.s2ft.coupled import CoupledModel
from hf_farms.s2ft.selection import Selection

SMALL, EVERY = ("q", "k", "v", "o", "up", "down"), ("q", "k", "v", "o", "gate", "up", "down")
HEADS = ("q", "k", "v", "o")
# The roles that S2FT can train in each family.
FAMILIES = {
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3", "phi3", "olmo2", "qwen3_vl"], EVERY
    ),
    **dict.fromkeys(["gpt2", "opt", "bert", "roberta", "distilbert", "vit", "gpt_neox"], SMALL),
    **dict.fromkeys(["mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "jamba"], HEADS),
    "t5": EVERY,
}


def scattered(model, config):
    """Units that do not come first, and others in every block."""
    channels = {}
    for block, found in enumerate(CoupledModel(model, config).structures):
        for structure in found:
            units = [unit for unit in range(1, structure.units, 2) if unit % 5 != 2 * block][-5:]
            for member in structure.trained(config.roles):
                channels[member.layer.name] = tuple(member.channels(units).tolist())
    return Selection(config, channels)
