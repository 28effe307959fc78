"""adapters.py with small sizes, and that its arms compute the same as adapters one by one."""

import sys
from pathlib import Path

import adapters_common as own
import pytest
import torch
from processes import finished

from hf_farms.s2ft.adapters.router import AdapterRouter

SCRIPT = Path(own.__file__).with_name("adapters.py")


def test_every_table_ends_with_rows():
    pytest.importorskip("peft", reason="peft is not installed")
    done = finished([sys.executable, SCRIPT, "--small", "--dtype", "bfloat16", "float32"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    _, *tables = done.stdout.split("## ")
    counts = {table.split("\n")[0]: sum(line.startswith("| 64 |") for line in table.split("\n")) for table in tables}
    assert counts == {"switching": 4, "parallel": 16, "sizes": 2}


def test_an_unknown_table_is_refused():
    done = finished([sys.executable, SCRIPT, "speed"])
    assert done.returncode == 2
    assert "tables must be of switching, parallel, sizes, got speed." in done.stderr


@pytest.mark.parametrize("side", own.SIDES)
@torch.no_grad()
def test_the_arms_add_what_their_adapters_change(side):
    model, x = own.Layers(16, 1, torch.float32, "cpu"), torch.randn(3, 4, 16)
    adapters = [own.random_adapter(model, side, 4, seed) for seed in range(3)]
    (patches,) = zip(*(adapter.patches.values() for adapter in adapters), strict=True)
    weight = model.layers[0].weight
    whole = [weight.index_copy(patch.dim, patch.indices, patch.values) for patch in patches]
    with AdapterRouter(model, adapters).using([2, 0, 1]):
        y = model(x)
    assert torch.allclose(y, torch.stack([x[i] @ whole[name].T for i, name in enumerate([2, 0, 1])]), atol=1e-6)
    lora = own.GatheredLoRA(16, 2, 3, torch.float32, "cpu")
    y = model(x)
    lora.add(lora.gathered(torch.tensor([2, 0, 1])), x, y)
    expected = torch.stack([x[i] @ (weight.T + lora.a[name] @ lora.b[name]) for i, name in enumerate([2, 0, 1])])
    assert torch.allclose(y, expected, atol=1e-5)
