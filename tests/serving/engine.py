"""One engine of vLLM, run by the Python of the environment that has it: a job as JSON in, results as JSON out.

    python tests/serving/engine.py JOB RESULTS

Job:
    options: arguments of `vllm.LLM`.
    keep_weights: whether linear layers keep the weights of the checkpoint, instead of packing them for the CPU.
    loras: name -> folder.
    prompts: token ids.
    tokens: number of new tokens.
    runs: each has `loras`, a name or null for every request of its batch, whose prompts are those above again and
        again, and may have `adapter`, a folder or null for the worker extension.

Results: for each run the outputs, or the refusal of the worker extension.
"""

import json
import os
import sys
from pathlib import Path

# In this process, so that exceptions of a worker arrive as they are, and nothing outlives it.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main(job):
    import vllm
    from vllm import _custom_ops
    from vllm.lora.request import LoRARequest
    from vllm.model_executor.layers import utils

    if job["keep_weights"]:
        utils.check_cpu_sgl_kernel = lambda *_: False
        _custom_ops._supports_onednn = False
    llm = vllm.LLM(**job["options"])
    loras = {name: LoRARequest(name, i + 1, folder) for i, (name, folder) in enumerate(job["loras"].items())}
    return [
        refusal(llm, run)
        or {"outputs": outputs(llm, job["prompts"], [loras.get(name) for name in run["loras"]], job["tokens"])}
        for run in job["runs"]
    ]


def refusal(llm, run):
    """Switch the adapter, if the run says so."""
    if "adapter" not in run:
        return None
    try:
        llm.collective_rpc("apply_s2ft_adapter", args=(run["adapter"],))
    except Exception as error:
        return {"refusal": f"{type(error).__name__}: {error}"}
    llm.reset_prefix_cache()
    return None


def outputs(llm, prompts, loras, tokens):
    """All log-probabilities of the first step, and the greedy tokens of all steps; one batch."""
    from vllm import SamplingParams

    batch = [{"prompt_token_ids": prompt} for prompt in prompts * (len(loras) // len(prompts))]
    greedy = {"temperature": 0, "ignore_eos": True}
    one = llm.generate(batch, SamplingParams(**greedy, max_tokens=1, logprobs=-1), lora_request=loras, use_tqdm=False)
    more = llm.generate(batch, SamplingParams(**greedy, max_tokens=tokens), lora_request=loras, use_tqdm=False)
    scores = [first.outputs[0].logprobs[0] for first in one]
    return [
        {"logprobs": [row[i].logprob for i in range(len(row))], "tokens": list(steps.outputs[0].token_ids)}
        for row, steps in zip(scores, more, strict=True)
    ]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
