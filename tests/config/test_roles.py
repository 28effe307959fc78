from hf_farms.blocks import LayerMetadata
from hf_farms.config.roles import ROUTER, counts


def test_routers_do_not_count_and_all_other_layers_do():
    assert not counts(ROUTER)
    assert all(counts(role) for role in ("q", "down", "mlp.router_norm", ""))
    assert [LayerMetadata("layer", role, (2, 2)).counts for role in (ROUTER, "gate")] == [False, True]
