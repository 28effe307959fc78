"""Train the demo models of the package: `demo`, with two blocks inserted late, and `demo-healthy`, its twin.

    # Once: inaugural.txt, state_of_the_union.txt -> text/*.txt
    python tests/benchmarks/train_demo.py --split-from FOLDER
    python tests/benchmarks/train_demo.py --output hf_farms/demo
    # The same files from the weights of a finished benchmark, and its place among those models for the cards
    python tests/benchmarks/train_demo.py --output hf_farms/demo --weights RUN --results RUN

The models are those of family 0 of `long_plans` in planted_jobs.py. RUN is the folder of planted.py: --weights reads
the models that `train` left there, --results the measures of `measure`. Without --results the cards have a mark in
place of the comparison. Nothing is chosen on `test.txt`; it is only read at the end, for the cards.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import demo_card
import demo_data
import planted_jobs
import torch
from planted_conditions import Plan
from planted_training import train
from transformers import LlamaForCausalLM

FAMILY = 0


def demo_plans() -> dict[str, Plan]:
    """The plan of each folder, named as in the package."""
    late, healthy = (plan for plan in planted_jobs.long_plans() if plan.family == FAMILY)
    return {"model": late, "model_healthy": healthy}


def trained(plan: Plan, weights: Path | None) -> LlamaForCausalLM:
    """The model of a plan, from the folder of a benchmark or trained now."""
    return train(plan).model if weights is None else planted_jobs.load(weights, plan)


def write_model(folder: Path, model: LlamaForCausalLM) -> None:
    """Write a checkpoint with its tokenizer over an earlier one."""
    if folder.exists():
        shutil.rmtree(folder)
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # is written for the owner alone, and ships in a wheel
    demo_data.train_tokenizer().save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split-from", type=Path, help="folder with inaugural.txt and state_of_the_union.txt")
    parser.add_argument("--output", type=Path, help="folder for the two models, `model` and `model_healthy`")
    parser.add_argument("--weights", type=Path, help="folder of planted.py with the trained models")
    parser.add_argument("--results", type=Path, help="folder of planted.py with the measured models")
    options = parser.parse_args(arguments)
    if options.output and options.output.resolve() != demo_data.DEMO:
        used = [name for name in demo_plans() if (options.output / name).exists()]
        if used:
            parser.error(f"--output must have no {used[0]} or be the folder of the demo, got {str(options.output)!r}")
    if options.split_from:
        demo_data.split_corpus(options.split_from)
    if options.output:
        torch.set_num_threads(1)
        for name, plan in demo_plans().items():
            write_model(options.output / name, trained(plan, options.weights))
            demo_card.write_card(options.output / name, plan, options.results)


if __name__ == "__main__":
    main()
