"""The section `fsdp2` of gpu.py: S2FT under FSDP2 in one process, with real checkpoints of the Trainer.

It has not run to its end on a GPU yet: on an H200, beside other work, there was time to train and to write sharded
checkpoints. A kind of checkpoint that fails is a row with its error.
"""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch.utils.data import Dataset

from hf_farms import S2FTAdapter, S2FTCallback, S2FTConfig
from hf_farms.s2ft.surgery import selective_layers

COLUMNS = ("resume", "weights", "adapter", "from_unsharded", "seconds", "unsharded_s", "peak_mib", "failed")
STEPS = 4


class Tokens(Dataset):
    """Random tokens."""

    def __init__(self, vocabulary, length):
        self.ids = torch.randint(0, vocabulary, (4 * STEPS, length), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def fsdp2(options, *, kinds):
    """Whether resumed trainings equal one without a stop, and checkpoints and adapters are those of the plain model."""
    for name in ("RANK", "LOCAL_RANK"):
        os.environ[name] = "0"
    os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"] = "1", "127.0.0.1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            row = dict.fromkeys(("checkpoints", *COLUMNS))
            try:
                row |= _measure(options, kind, Path(folder) / kind)
            except Exception as error:
                row |= {"failed": f"{type(error).__name__}: {error}"[:300]}
            yield row | {"checkpoints": kind}
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@torch.enable_grad()
def _measure(options, kind, folder):
    cuda = options.device == "cuda"
    one, unsharded = _train(options, None, folder / "one")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    whole, seconds = _train(options, kind, folder / "whole", save=True)
    again, _ = _train(options, kind, folder / "again", resume=folder / "whole" / f"checkpoint-{STEPS // 2}")
    slices, plain = _slices(whole.model), dict(_model(options).state_dict())
    adapted = _model(options)
    S2FTAdapter.from_pretrained(folder / "whole" / f"checkpoint-{STEPS}").merge(adapted)
    row = {
        "resume": "exact" if _far(slices, _slices(again.model)) == 0 else "not exact",
        "weights": "sharded",
        "adapter": "of the model" if _far(_weights(whole.model), adapted.state_dict()) == 0 else "not of the model",
        "from_unsharded": _far(slices, _slices(one.model)),
        "seconds": seconds,
        "unsharded_s": unsharded,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
    }
    stored = folder / "whole" / f"checkpoint-{STEPS}" / "model.safetensors"
    if stored.exists():
        row["weights"] = "plain" if load_file(stored).keys() == plain.keys() else "not plain"
    return row


def _train(options, kind, folder, *, save=False, resume=None):
    """Train for a few steps; return the Trainer and the seconds."""
    # accelerate tells later trainings of this process that there is FSDP, by the environment.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    model = _model(options)
    config = {"version": 2, "state_dict_type": kind, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    on = {"fsdp": True, "fsdp_config": config} if kind is not None and options.device == "cuda" else {}
    run = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_strategy="steps" if save else "no",
            save_steps=STEPS // 2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=options.device == "cpu",
            **on,
        ),
        train_dataset=Tokens(model.config.vocab_size, options.length),
        callbacks=[S2FTCallback(S2FTConfig(budget=0.1 if options.small else 0.01))],
    )
    if kind is not None and options.device == "cpu":
        # accelerate shards on accelerators only.
        sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
        from fsdp2 import told_of_fsdp2

        told_of_fsdp2(run, state_dict_type=kind)
    start = time.perf_counter()
    run.train(resume_from_checkpoint=None if resume is None else str(resume))
    return run, time.perf_counter() - start


def _model(options):
    torch.manual_seed(0)
    width = options.width
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=2 if options.small else 4,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
    )
    with torch.device(options.device):  # where random weights take no time
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def _slices(model):
    return {name: layer.engine.whole(layer.selected).cpu() for name, layer in selective_layers(model)}


def _weights(model):
    parameters = dict(model.named_parameters())
    values = {
        name: getattr(parameter, "full_tensor", lambda p=parameter: p)() for name, parameter in parameters.items()
    }
    return {name: value.detach().cpu() for name, value in values.items() if not name.endswith(".selected")}


def _far(a, b):
    return max((a[name].float() - b[name].float().cpu()).abs().max().item() for name in a)
