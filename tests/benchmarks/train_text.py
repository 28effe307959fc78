"""The demo architecture from scratch on presidential speeches, with and without FarmsLRCallback: perplexity.

    python tests/benchmarks/train_text.py [--text FOLDER] [--arms none farms ...] [--seeds 0 ...] [--epochs 1]

FOLDER holds train.txt, select.txt (validation) and test.txt, two empty lines between texts; by default the
public-domain speeches of the demo, split by speech. The tokenizer is fitted to train.txt. Perplexity counts whole
windows of 256 tokens; the unigram model beside it has the token frequencies of train.txt.
"""

import math
from pathlib import Path

import train_demo as demo
from training_common import Task, length_of, parser, run


def text_task(tokenizer, **arguments):
    return Task(
        model=lambda: demo.new_model(tokenizer.bos_token_id),
        train=demo.Windows(demo.tokens_of("train", tokenizer), shuffle=True),
        validation=demo.Windows(demo.tokens_of("select", tokenizer), shuffle=False),
        test=demo.Windows(demo.tokens_of("test", tokenizer), shuffle=False),
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
