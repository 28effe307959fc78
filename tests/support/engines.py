"""DeepSpeed on CPUs, for scripts that `launch` starts; without it the tests of engines are skipped."""

import importlib.util
import os

import pytest

os.environ["DS_ACCELERATOR"] = "cpu"

NEEDS_DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: make test-engines installs it"
)


def import_deepspeed():
    """Import it without its extensions, which it would compile for more than a minute."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


# Else ZeRO-3 keeps small parameters whole, and steps on all of them together.
SMALL = {
    "stage3_param_persistence_threshold": 0,
    "sub_group_size": 5000,
    "stage3_gather_16bit_weights_on_model_save": True,
}


def zero(stage, **options):
    """TrainingArguments for a stage of ZeRO, with batches of half the size for two processes."""
    import_deepspeed()
    config = {
        "zero_optimization": {"stage": stage, **(SMALL if stage == 3 else {}), **options},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # torch's AdamW also where DeepSpeed would compile its own for the CPU.
        "zero_force_ds_cpu_optimizer": False,
    }
    return {"per_device_train_batch_size": 2, "deepspeed": config}


def whole_weights(model):
    """All weights, those that ZeRO-3 keeps in parts gathered."""
    from hf_farms.blocks.partitioned import gathered

    whole = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            whole[name] = parameter.detach().clone()
    return whole
