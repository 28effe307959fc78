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
    speed: to measure it, prompts of one length, sizes of batches, the number of new tokens, and that of repeats.

Results: for each run the outputs, or the refusal of the worker extension. With `speed` also `switch_s`, the seconds of
the worker extension and of the reset of the prefix cache, and `tokens_per_s`, the median for each size of a batch.
"""

import json
import os
import statistics
import sys
import threading
import time
from itertools import cycle, islice
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
    return [result(llm, run, [loras.get(name) for name in run["loras"]], job) for run in job["runs"]]


def result(llm, run, loras, job):
    seconds = None
    if "adapter" in run:
        start = time.perf_counter()
        try:
            llm.collective_rpc("apply_s2ft_adapter", args=(run["adapter"],))
        except Exception as error:
            return {"refusal": f"{type(error).__name__}: {error}"}
        llm.reset_prefix_cache()
        synchronize()
        seconds = time.perf_counter() - start
    made = {"outputs": outputs(llm, job["prompts"], loras, job["tokens"])}
    if "speed" in job:
        made |= {"switch_s": seconds, "tokens_per_s": list(rates(llm, loras, **job["speed"]))}
    return made


def synchronize():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


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


def rates(llm, loras, *, prompts, batches, tokens, repeats):
    """Yield the tokens per second of each size of a batch, whose requests take the LoRAs in turn."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens)
    for size in batches:
        batch = [{"prompt_token_ids": prompt} for prompt in prompts[:size]]
        seconds = []
        for _ in range(1 + repeats):  # the first one is not counted
            llm.reset_prefix_cache()
            start = time.perf_counter()
            llm.generate(batch, greedy, lora_request=list(islice(cycle(loras), size)), use_tqdm=False)
            seconds.append(time.perf_counter() - start)
        yield size * tokens / statistics.median(seconds[1:])


def end_with(parent):
    """End this process when its parent has ended, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
