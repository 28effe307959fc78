"""Small models, texts and trainings, the same for every revision: an earlier one wrote files with them.

This file imports nothing of hf_farms, so that `tests/golden/90059e8/write.py` runs with the earlier code.
"""

import tokenizers
import torch
import transformers
from torch.utils.data import Dataset

# Of the two prunings: one in peace, one interrupted.
PRUNE_OPTIONS = ("--calibration", "text.txt", "--calibration-samples", "4", "--calibration-length", "16")
PRUNE_OPTIONS += ("--evaluation", "text.txt", "--evaluation-windows", "2", "--context-length", "16")


def small_llama():
    """A LLaMA of three blocks, whose tails get lighter with depth."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter *= torch.logspace(0, index - 2.0, len(parameter))[:, None]
    return model


def small_tokenizer():
    """Sixty numbers, a word each."""
    vocabulary = {str(number): number for number in range(60)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="1")


def numbers():
    """A text of 400 of them."""
    generator = torch.Generator().manual_seed(0)
    return " ".join(str(number) for number in torch.randint(2, 60, (400,), generator=generator).tolist()) + "\n"


class Sequences(Dataset):
    """32 sequences of 8 tokens."""

    def __init__(self):
        self.ids = torch.randint(0, 60, (32, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def training(folder, callback, **options):
    """A Trainer of eight steps; the earlier revision wrote its checkpoint after four."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        optim="adamw_torch",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_steps=2,
        seed=0,
        **{"save_strategy": "steps", "save_steps": 4, **options},
    )
    return transformers.Trainer(model=small_llama(), args=arguments, train_dataset=Sequences(), callbacks=[callback])
