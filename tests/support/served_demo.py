"""The demo in a form that vLLM for the CPU has kernels for: heads of 32 instead of 24.

The new dimensions of a head are zero in q, k, v and o. Rotary embeddings turn dimension i with i + d / 2 by
theta^(-2 i / d), so that the halves move apart and theta becomes theta^(32 / 24); attention divides by sqrt(d), which q
makes up for. The function is that of the demo, up to the rounding of q.
"""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_farms.demo import demo_model

HEAD = 32


def padded_demo(dtype=torch.float32):
    """The demo with heads of 32, in memory."""
    demo = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)
    options = demo.config.to_dict()
    rope, head = options["rope_parameters"], options["head_dim"]
    rope = rope | {"rope_theta": rope["rope_theta"] ** (HEAD / head)}
    model = LlamaForCausalLM(LlamaConfig(**options | {"head_dim": HEAD, "rope_parameters": rope, "use_cache": True}))
    state = {}
    for name, weight in demo.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weight = padded(weight, head)
        elif name.endswith("o_proj.weight"):
            weight = padded(weight.mT, head).mT
        if name.endswith("q_proj.weight"):
            weight = weight * (HEAD / head) ** 0.5
        state[name] = weight
    model.load_state_dict(state)
    return model.to(dtype).eval()


def padded(weight, head):
    """Rows of heads, each half of a head followed by zeros."""
    halves = weight.view(-1, 2, head // 2, weight.shape[1])
    more = halves.new_zeros(len(halves), 2, (HEAD - head) // 2, weight.shape[1])
    return torch.cat([halves, more], dim=2).flatten(0, 2)
