"""Make a folder of lm-eval tasks from questions with numbered answers on disk, for `hf-farms eval --include-path`.

    python tests/benchmarks/local_tasks.py DATA OUT [--limit 500]

DATA holds `test_NAME.json` files of LLM-Adapters (arXiv 2304.01933): lists of objects with `instruction` ("...
question: TEXT Answer1: A Answer2: B ... Answer format: ...", or true/false) and `answer` ("answer2", "false"). For
each, OUT gets `local_NAME.yaml` and its questions as JSON lines: multiple choice by the log-likelihood of the answers'
text, zero-shot, as lm-eval asks ARC. Questions that cannot be read are counted.
"""

import argparse
import json
import re
from pathlib import Path

QUESTION = re.compile(r"question: (?P<question>.*?)\s+Answer1: (?P<answers>.*?)\s+Answer format:", re.DOTALL)
YES_OR_NO = re.compile(r"question: (?P<question>.*?)\s+Answer format: true/false", re.DOTALL)
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def document(entry):
    """Question, choices and the index of the right one; None if it cannot be read."""
    if matched := QUESTION.search(entry["instruction"]):
        choices = re.split(r"\s+Answer\d+: ", matched["answers"])
        gold = int(entry["answer"].removeprefix("answer")) - 1
        if gold >= len(choices):
            return None
    elif matched := YES_OR_NO.search(entry["instruction"]):
        choices, gold = ["true", "false"], ["true", "false"].index(entry["answer"])
    else:
        return None
    return {"question": matched["question"], "choices": choices, "gold": gold}


def write_tasks(data, out, limit):
    """Write a task for each file; return their names."""
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for source in sorted(data.glob("test_*.json")):
        name = "local_" + re.sub(r"\W+", "_", source.stem.removeprefix("test_").lower())
        entries = json.loads(source.read_text(encoding="utf-8"))
        documents = [found for entry in entries if (found := document(entry))]
        lines = (out / f"{name}.jsonl").resolve()
        lines.write_text("".join(json.dumps(each) + "\n" for each in documents[:limit]), encoding="utf-8")
        (out / f"{name}.yaml").write_text(TASK.format(name=name, path=json.dumps(str(lines))), encoding="utf-8")
        print(f"{name}: {len(documents[:limit])} questions, {len(entries) - len(documents)} could not be read")
        names.append(name)
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="questions of each task, from the start")
    options = parser.parse_args()
    if not any(options.data.glob("test_*.json")):
        parser.error(f"DATA must hold files test_*.json, got {options.data}")
    print(",".join(write_tasks(options.data, options.out, options.limit)))


if __name__ == "__main__":
    main()
