"""A small Llama from scratch on presidential speeches, with and without FarmsLRCallback: perplexity.

    python tests/benchmarks/train_text.py [--text FOLDER] [--arms none farms ...] [--seeds 0 ...] [--epochs 1]

FOLDER holds train.txt, select.txt (validation) and test.txt, two empty lines between texts; by default the
public-domain speeches of the demo, split by speech. The tokenizer is fitted to train.txt. Perplexity counts whole
windows of 256 tokens; the unigram model beside it has the token frequencies of train.txt.
"""

import math
from pathlib import Path

import demo_data as demo
import torch
from torch.utils.data import Dataset
from training_common import Task, length_of, parser, run
from transformers import LlamaConfig, LlamaForCausalLM


class Windows(Dataset):
    """Windows of the context length: consecutive ones, or as many at random places."""

    def __init__(self, tokens, *, shuffle):
        self.tokens, self.shuffle = tokens, shuffle

    def __len__(self):
        return len(self.tokens) // demo.CONTEXT

    def __getitem__(self, index):
        last = len(self.tokens) - demo.CONTEXT
        start = int(torch.randint(last, ())) if self.shuffle else index * demo.CONTEXT
        window = self.tokens[start : start + demo.CONTEXT]
        return {"input_ids": window, "labels": window}


def new_model(boundary):
    """1.4 million parameters, random."""
    config = LlamaConfig(
        vocab_size=demo.VOCABULARY,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=352,
        max_position_embeddings=demo.CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=boundary,
        eos_token_id=boundary,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def text_task(tokenizer, **arguments):
    return Task(
        model=lambda: new_model(tokenizer.bos_token_id),
        train=Windows(demo.tokens_of("train", tokenizer), shuffle=True),
        validation=Windows(demo.tokens_of("select", tokenizer), shuffle=False),
        test=Windows(demo.tokens_of("test", tokenizer), shuffle=False),
        score=lambda found: math.exp(found["eval_loss"]),
        arguments={
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 16,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "weight_decay": 0.1,
            "adam_beta2": 0.95,
            **arguments,
        },
    )


def main(arguments=None):
    found = parser(__doc__, epochs=1, lr=3e-3)
    found.add_argument("--text", type=Path, default=demo.TEXT)
    options = found.parse_args(arguments)
    demo.TEXT = options.text
    task = text_task(demo.train_tokenizer(), **length_of(options))
    unigram = {
        f"unigram perplexity, {name}": demo.unigram_perplexity(task.train.tokens, part.tokens)
        for name, part in (("validation", task.validation), ("test", task.test))
    }
    return run(task, options, metric="perplexity", baselines=unigram)


if __name__ == "__main__":
    main()
