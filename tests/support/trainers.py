"""Small models and data in real, unmodified Trainers."""

import tokenizers
import torch
import transformers
from families import family_model
from models import tiny
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_farms import FarmsLRConfig, PruneConfig, prune
from hf_farms.callbacks.trainer import unwrap_optimizer


class Tokens(Dataset):
    def __init__(self, count=64):
        self.ids = torch.randint(0, 100, (count, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def signal(model, blocks=None):
    """Blocks that differ by more than chance: the tails get lighter with depth."""
    with torch.no_grad():
        for index, block in enumerate(blocks or model.model.layers):
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter *= torch.logspace(0, index - 2.0, len(parameter))[:, None]
    return model


def arguments(folder, **options):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 4,
            "seed": 0,
            **options,
        }
    )


def trainer(folder, callback=None, *, model=None, **options):
    callbacks = [] if callback is None else [callback]
    return Trainer(
        model=model or signal(tiny("llama")),
        args=arguments(folder, **options),
        train_dataset=Tokens(),
        eval_dataset=Tokens(8),
        callbacks=callbacks,
    )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def pruned(family="llama", dtype=torch.float32, **options):
    """A model of a family with half of the weights of its blocks removed."""
    model = family_model(family).to(dtype)
    prune(model, PruneConfig(method="magnitude", allocation="uniform", **options))
    return model


def assert_resume_is_exact(folder, make_model, make_callback):
    """Eight steps in one go, and with a stop after the fourth."""
    whole, resumed = (
        trainer(folder, make_callback(), model=make_model(), save_strategy="steps", save_steps=4) for _ in range(2)
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert same(weights(whole.model), weights(resumed.model))


FAST = FarmsLRConfig(start=0, interval=2)


def hand_built(model, factors, lr):
    """An optimizer with real groups, one for each block and one for the rest."""
    blocks = [list(block.parameters()) for block in model.model.layers]
    inside = {id(p) for block in blocks for p in block}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [{"params": block, "lr": lr * factor} for block, factor in zip(blocks, factors, strict=True)]
    return torch.optim.AdamW([*groups, {"params": rest, "lr": lr}], weight_decay=0.0, fused=True)


def rate_of(optimizer, weight):
    return next(group["lr"] for group in optimizer.param_groups if any(p is weight for p in group["params"]))


class InTheStep(transformers.TrainerCallback):
    """Does something inside the optimizer's step, after the hooks that were there."""

    def __init__(self, hook):
        self.hook = hook

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        unwrap_optimizer(optimizer).register_step_pre_hook(self.hook)


def word_level():
    """A tokenizer of 100 numbers."""
    vocabulary = {str(number): number for number in range(100)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))


class Images(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        source = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=source), "labels": index % 2}


class Pairs(Tokens):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "attention_mask": torch.ones(12, dtype=torch.long)}
