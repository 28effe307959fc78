"""Norms of heads and channels, written out unit by unit, and which units a selection chose."""

import math

import torch

# model, roles, layout; units of the attention are heads, groups, and single heads without grouped queries.
SETTINGS = {
    "heads": ("llama", ("o", "down"), "indexed"),
    "groups": ("llama", ("q", "v", "o", "up", "down"), "indexed"),
    "moved": ("qwen2", ("o", "gate", "up"), "permuted"),
    "fused": ("phi3", ("k", "v", "gate", "down"), "indexed"),
    "conv1d": ("gpt2", ("v", "o", "down"), "indexed"),
    "interleaved": ("gpt_neox", ("q", "o", "up"), "permuted"),
}
HEADS, SIZE = 4, 8


def groups_of(name, roles, layout):
    """Query heads in one unit of the attention."""
    grouped = name in ("llama", "qwen2", "phi3")
    return 2 if grouped and (layout == "permuted" or {"k", "v"} & set(roles)) else 1


def matrices(model, name, gradient=False):
    """`(out, in)` weights, or their gradients, of each block by role, cut by hand as the model's code does."""

    def of(module):
        weight = module.weight.grad if gradient else module.weight.detach()
        return weight.mT if "Conv1D" in type(module).__name__ else weight

    found = []
    for block in blocks(model, name):
        if name == "gpt2":
            q, k, v = of(block.attn.c_attn).split(32)
            mlp = {"up": of(block.mlp.c_fc), "down": of(block.mlp.c_proj)}
            found.append({"q": q, "k": k, "v": v, "o": of(block.attn.c_proj), **mlp})
        elif name == "gpt_neox":
            fused = of(block.attention.query_key_value).reshape(HEADS, 3, SIZE, 32)
            q, k, v = (fused[:, i].reshape(32, 32) for i in range(3))
            mlp = {"up": of(block.mlp.dense_h_to_4h), "down": of(block.mlp.dense_4h_to_h)}
            found.append({"q": q, "k": k, "v": v, "o": of(block.attention.dense), **mlp})
        elif name == "phi3":
            q, k, v = of(block.self_attn.qkv_proj).split([32, 16, 16])
            gate, up = of(block.mlp.gate_up_proj).split(48)
            found.append(
                {"q": q, "k": k, "v": v, "o": of(block.self_attn.o_proj), "gate": gate, "up": up}
                | {"down": of(block.mlp.down_proj)}
            )
        else:
            found.append({role: of(getattr(block.self_attn, f"{role}_proj")) for role in "qkvo"})
            found[-1] |= {role: of(getattr(block.mlp, f"{role}_proj")) for role in ("gate", "up", "down")}
    return found


def blocks(model, name):
    if name == "gpt2":
        return model.transformer.h
    return model.gpt_neox.layers if name == "gpt_neox" else model.model.layers


def inputs_of(block, name):
    """The modules whose inputs are the activations of heads and of channels."""
    if name == "gpt2":
        return block.attn.c_proj, block.mlp.c_proj
    if name == "gpt_neox":
        return block.attention.dense, block.mlp.dense_4h_to_h
    return block.self_attn.o_proj, block.mlp.down_proj


ATTENTION = ("q", "k", "v", "o")


def units_by_hand(found, roles, queries):
    """For the attention and the feed-forward network the trained weights of every unit, as a list of tensors."""
    for kind in (ATTENTION, ("gate", "up", "down")):
        count = HEADS // queries if kind is ATTENTION else found["down"].shape[1]
        units = [[] for _ in range(count)]
        for role in (role for role in roles if role in kind):
            matrix = found[role].mT if role in ("o", "down") else found[role]
            width = matrix.shape[0] // count
            for unit in range(count):
                units[unit].append(matrix[unit * width : (unit + 1) * width])
        yield units


def weight_norms(model, name, roles, queries):
    return [
        [[math.sqrt(sum(float(w.double().square().sum()) for w in unit)) for unit in units] for units in both]
        for both in (list(units_by_hand(found, roles, queries)) for found in matrices(model, name))
    ]


def activation_norms(model, name, roles, queries, batches):
    """All activations are kept."""
    kept = [[[], []] for _ in blocks(model, name)]
    handles = [
        module.register_forward_hook(lambda m, args, out, to=kept[b][side]: to.append(args[0].detach().clone()))
        for b, block in enumerate(blocks(model, name))
        for side, module in enumerate(inputs_of(block, name))
    ]
    for batch in batches:
        model(**batch)
    for handle in handles:
        handle.remove()
    found = []
    for sides in kept:
        found.append([])
        for side, width in zip(sides, (SIZE * queries, 1), strict=True):
            tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in side]).double()
            found[-1].append([float(unit.norm()) for unit in tokens.split(width, dim=1)])
    return found


def gradient_norms(model, name, roles, queries, batches):
    totals = None
    for batch in batches:
        model.zero_grad()
        model.requires_grad_(True)
        model(**batch).loss.backward()
        squares = [
            [[sum(float(w.double().square().sum()) for w in unit) for unit in units] for units in both]
            for both in (list(units_by_hand(g, roles, queries)) for g in matrices(model, name, gradient=True))
        ]
        totals = squares if totals is None else add(totals, squares)
    model.zero_grad()
    return [[[math.sqrt(value) for value in units] for units in both] for both in totals]


def add(a, b):
    return a + b if isinstance(a, float) else [add(x, y) for x, y in zip(a, b, strict=True)]


def multiply(a, b):
    return a * b if isinstance(a, float) else [multiply(x, y) for x, y in zip(a, b, strict=True)]


def chosen_units(selection, model, name, roles, queries):
    """The units that were chosen, in each block those of heads and of channels; the same in every layer of a block."""
    found = []
    for number in range(len(blocks(model, name))):
        found.append([])
        for kind in (ATTENTION, ("gate", "up", "down")):
            of_layers = []
            for role in (role for role in roles if role in kind):
                (layer,) = [layer for layer in selection.channels if role_in(layer, number) == role]
                size = SIZE if kind is ATTENTION else 1
                width = 1 if role in ("k", "v") and name in ("llama", "qwen2", "phi3") else queries
                width = size * (width if kind is ATTENTION else 1)
                channels = selection.channels[layer]
                units = sorted({c // width for c in channels})
                assert list(channels) == [c for unit in units for c in range(unit * width, (unit + 1) * width)]
                of_layers.append(units)
            assert all(units == of_layers[0] for units in of_layers)
            found[-1].append(of_layers[0])
    return found


ENDS = {
    **{f"{role}_proj": role for role in ("q", "k", "v", "o", "gate", "up", "down")},
    **{f".{role}": role for role in ("q", "k", "v", "gate", "up")},
    **{"attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down", "attention.dense": "o"},
    **{"dense_h_to_4h": "up", "dense_4h_to_h": "down"},
}


def role_in(layer, number):
    if f".{number}." not in layer:
        return None
    return next((role for end, role in ENDS.items() if layer.endswith(end)), None)
