"""Tasks for lm-eval in files of their own, so that they run without a network."""

import json

WORDS = [
    f"{first} {second}"
    for first in ("peace", "war", "law", "trade")
    for second in ("now", "then", "here", "there", "again")
]
CHOICES = ["the government", "peace with all nations", "a much longer answer of several words"]
MEAN = "{metric: %s, aggregation: mean, higher_is_better: true}"


def questions(shift=0):
    return [
        {"question": f"My fellow citizens, what follows {word}?", "choices": CHOICES, "answer": (i + shift) % 3}
        for i, word in enumerate(WORDS)
    ]


def write_tasks(folder, written=()):
    """Multiple choice (`farms_after`, `farms_before`, both in the group `farms_both`), text (`farms_text`) and written
    answers (`farms_written`, from pairs of a prompt and its answer)."""
    _write(folder, "farms_after", questions(), _choice(MEAN % "acc", MEAN % "acc_norm"))
    mcc = "{metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}"
    _write(folder, "farms_before", questions(1)[:9], _choice(MEAN % "acc", mcc) + "num_fewshot: 0\n")
    rolling = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{page}}'\n"
    _write(folder, "farms_text", [{"page": f"The {w} of the people."} for w in WORDS[:4]], rolling)
    answers = [{"prompt": prompt, "answer": answer} for prompt, answer in written]
    generate = (
        "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 8, do_sample: false}\n"
        f"metric_list: [{MEAN % 'exact_match'}]\n"
    )
    _write(folder, "farms_written", answers or [{"prompt": "a", "answer": "b"}], generate)
    group = "group: farms_both\ntask: [farms_after, farms_before]\n"
    metrics = "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 3.0}\n"
    (folder / "farms_both.yaml").write_text(group + metrics)
    return folder


def _choice(*metrics):
    return (
        "output_type: multiple_choice\ndoc_to_text: \"{{question}}\\nAnswer:\"\ndoc_to_choice: '{{choices}}'\n"
        f"doc_to_target: '{{{{answer}}}}'\nmetric_list: [{', '.join(metrics)}]\n"
    )


def _write(folder, name, rows, body):
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\ntest_split: test\n"
    (folder / f"{name}.yaml").write_text(f"{head}{body}metadata: {{version: 2.0}}\n")
