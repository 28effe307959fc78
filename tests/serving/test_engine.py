"""Adapters of the demo in a real vLLM, against transformers: merged, as LoRA, and written into a running engine.

Run by `make test-serving`. In float32 the two differ by the order of sums: log-probabilities agree within FLOAT32, and
greedy tokens are equal. In bfloat16 logits are rounded to 8 bits, 0.06 or 0.125 at their size here, after as many
roundings on the way; transformers itself is off by that, so that vLLM may be off TIMES as much, and a greedy token may
be another one only if it is as probable within this difference.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from hf_farms_cli.app import app
from processes import finished
from served_demo import padded_demo
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft
from hf_farms.demo import demo_model
from hf_farms.s2ft.adapters.lora_servers import short_names

pytestmark = pytest.mark.serving
ROOT = Path(__file__).parents[2]
ENGINE = Path(__file__).parent / "engine.py"
PYTHON = Path(os.environ.get("HF_FARMS_SERVING_PYTHON", ROOT / ".venv-serving/bin/python"))
EXTENSION = "hf_farms.serving.vllm.S2FTWorkerExtension"
NAMES, DTYPES = ("rivers", "stars"), ("float32", "bfloat16")
TEXTS = {
    "rivers": "The river carries the stones to the sea, and the sea ",
    "stars": "Every star of the night was counted ",
}
PROMPTS = ("The people of the United States", "I have", "There was once a king who")
NEW_TOKENS = 24
FLOAT32, TIMES = 1e-4, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, prompts and exports; in the folder, for each of two adapters, its files, LoRA and merged checkpoint."""
    folder = tmp_path_factory.mktemp("served")
    padded_demo(torch.bfloat16).save_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    tokenizer.save_pretrained(folder / "base")
    exclude, ranks = [], []
    for name in NAMES:
        model = loaded(folder / "base", "bfloat16")
        exclude.append(apply_s2ft(model, S2FTConfig(budget=0.05), exclude=exclude))
        learn(model, tokenizer(TEXTS[name] * 8, return_tensors="pt")["input_ids"])
        adapter = S2FTAdapter.from_model(model)
        adapter.save_pretrained(folder / name)
        ranks.append(adapter.export_lora(folder / f"{name}-lora", base=folder / "base"))
        arguments = ["adapter", "merge", folder / "base", folder / name, "--output", folder / f"{name}-merged"]
        done = CliRunner().invoke(app, [str(word) for word in arguments])
        assert done.exit_code == 0, done.output
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    return folder, prompts, ranks


def learn(model, ids):
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(20):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def loaded(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def serve(folder, runs, **job):
    """The results of an engine."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} must be a Python with vLLM: run the tests with make test-serving.")
    options = {"enforce_eager": True, "max_model_len": 128, "max_num_seqs": 8, "max_logprobs": -1, "seed": 0}
    job = {"keep_weights": False, "loras": {}, "tokens": NEW_TOKENS, "runs": runs} | job
    job["options"] = options | {"worker_extension_cls": EXTENSION} | job["options"]
    (folder / "job.json").write_text(json.dumps(job))
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = finished([PYTHON, ENGINE, folder / "job.json", folder / "results.json"], env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def compare(outputs, folder, dtype, prompts, what):
    """Compare outputs of vLLM with transformers' for the merged checkpoint in this folder."""
    exact, model = loaded(folder, "float32"), loaded(folder, dtype)
    largest, equal = 0.0, 0
    for output, prompt in zip(outputs, prompts, strict=True):
        served = torch.tensor(output["logprobs"])
        # Each step after the tokens that vLLM chose.
        row = torch.tensor([prompt + output["tokens"]])
        with torch.no_grad():
            expected = exact(row).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            rounded = model(row).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        tolerance = FLOAT32 if dtype == "float32" else TIMES * float((rounded[0] - expected[0]).abs().max())
        difference = float((served - expected[0]).abs().max())
        chosen = torch.tensor(output["tokens"])
        assert difference <= tolerance, (what, difference, tolerance)
        short = expected.max(-1).values - expected[range(len(chosen)), chosen]
        if dtype == "float32":
            assert chosen.tolist() == expected.argmax(-1).tolist(), what
        assert float(short.max()) <= 2 * tolerance, (what, float(short.max()), tolerance)
        largest = max(largest, difference)
        equal += int((chosen == rounded.argmax(-1)).sum())
    total = len(prompts) * NEW_TOKENS
    sys.stderr.write(f"{what} in {dtype}: log-probabilities within {largest:.2e}, {equal} of {total} tokens equal\n")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_merged_checkpoints(made, tmp_path, name, dtype):
    folder, prompts, _ = made
    merged = folder / f"{name}-merged"
    runs = [{"loras": [None] * len(prompts)}, {"loras": [], "adapter": str(folder / name)}]
    results = serve(tmp_path, runs, options={"model": str(merged), "dtype": dtype}, prompts=prompts)
    compare(results[0]["outputs"], merged, dtype, prompts, f"{name} merged")
    # The packed weights of a CPU are not those of a checkpoint.
    assert "must keep the weights of the checkpoint to patch them" in results[1]["refusal"]
    assert "hf-farms adapter export" in results[1]["refusal"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_loras_in_one_batch(made, tmp_path, dtype):
    folder, prompts, exports = made
    options = {
        "model": str(folder / "base"),
        "dtype": dtype,
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": max(export.max_lora_rank for export in exports),
        "lora_target_modules": list(short_names(exports[0].modules)),
    }
    # Without LoRA in a batch of their own: beside LoRAs, vLLM for the CPU gives such requests the last one.
    both, base = serve(
        tmp_path,
        [{"loras": [name for name in NAMES for _ in prompts]}, {"loras": [None] * len(prompts)}],
        options=options,
        loras={name: str(folder / f"{name}-lora") for name in NAMES},
        prompts=prompts,
    )
    own = [both["outputs"][: len(prompts)], both["outputs"][len(prompts) :]]
    for name, outputs in zip(NAMES, own, strict=True):
        compare(outputs, folder / f"{name}-merged", dtype, prompts, f"{name} beside another LoRA")
    compare(base["outputs"], folder / "base", dtype, prompts, "base")
    assert len({tuple(outputs[0]["tokens"]) for outputs in [*own, base["outputs"]]}) == 3


def test_an_engine_is_patched(made, tmp_path):
    """By the worker extension, in an engine that keeps the weights as they are, as on a GPU."""
    folder, prompts, _ = made
    none = [None] * len(prompts)
    adapters = [str(folder / NAMES[0]), str(folder / NAMES[1]), None]
    runs = [{"loras": none}, *({"loras": none, "adapter": adapter} for adapter in adapters)]
    shared = {"prompts": prompts, "keep_weights": True}
    base, *patched, again = serve(
        tmp_path, runs, options={"model": str(folder / "base"), "dtype": "bfloat16"}, **shared
    )
    for name, result in zip(NAMES, patched, strict=True):
        compare(result["outputs"], folder / f"{name}-merged", "bfloat16", prompts, f"{name} written into the engine")
    # Bit for bit: the base again, and the engine of the merged checkpoint.
    assert again == base
    assert patched[0] != base
    options = {"model": str(folder / f"{NAMES[1]}-merged"), "dtype": "bfloat16"}
    assert serve(tmp_path, runs[:1], options=options, **shared) == [patched[1]]
