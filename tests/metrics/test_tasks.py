"""Tasks of lm-eval against answers that are scored here by hand, one at a time."""

import functools
import logging
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from lm_tasks import CHOICES, WORDS, questions, write_tasks
from models import tiny, tiny_bert
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_farms.demo import demo_model
from hf_farms.errors import DataError, HfFarmsError, HfFarmsWarning, ModelError
from hf_farms.loading.opening import load_model
from hf_farms.metrics import quiet, tasks
from hf_farms.metrics.task_scores import TaskScore, compare_tasks, merge_tasks
from hf_farms.metrics.tasks import TaskSuite
from hf_farms.reports import TaskRecord

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "hf-farms[eval]"')
# lm-eval and what it imports (nltk, sacrebleu, datasets) warn about themselves; our own warnings stay errors.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error::hf_farms.errors.HfFarmsWarning"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model())


@pytest.fixture(scope="module")
def demo():
    return AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32)


@pytest.fixture(scope="module")
def random_model():
    return tiny("llama", vocab_size=2048, max_position_embeddings=256)


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """An error without a formula is the same function of ten times fewer resamples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "BOOTSTRAPS", 100)
        yield


@pytest.fixture(scope="module")
def own_tasks():
    """The list of lm-eval's own tasks, ten thousand files that take seconds, is read once."""
    from lm_eval import tasks as own

    manager = own.TaskManager
    once = functools.cache(manager)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "TaskManager", lambda **o: manager(**o) if "include_defaults" in o else once(**o))
        yield


@pytest.fixture(scope="module")
def prompts():
    return [f"The {word} of the" for word in WORDS[:6]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo, tokenizer, prompts):
    """Half of the written answers are those of the demo."""
    answers = [slow_answer(demo, tokenizer, p) if i % 2 else "nothing" for i, p in enumerate(prompts)]
    return write_tasks(tmp_path_factory.mktemp("tasks"), list(zip(prompts, answers, strict=True)))


@torch.no_grad()
def slow_log_likelihood(model, ids, start):
    """Of the tokens from `start` on, each from its own forward pass."""
    total = 0.0
    for t in range(start, len(ids)):
        logits = model(torch.tensor([ids[:t]])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[ids[t]])
    return total


@torch.no_grad()
def slow_answer(model, tokenizer, prompt):
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:]).split(".")[0]


def slow_accuracies(model, tokenizer, rows):
    """Of the most likely choice, and of the one that is most likely per letter."""
    right = []
    for row in rows:
        context = f"{row['question']}\nAnswer:"
        start = len(tokenizer(context)["input_ids"])
        scores = [slow_log_likelihood(model, tokenizer(f"{context} {c}")["input_ids"], start) for c in CHOICES]
        by_letter = [score / len(choice) for score, choice in zip(scores, CHOICES, strict=True)]
        right.append([values.index(max(values)) == row["answer"] for values in (scores, by_letter)])
    return [sum(column) / len(rows) for column in zip(*right, strict=True)]


@pytest.mark.parametrize("which", ["demo", "random_model"])
def test_choices_equal_the_slow_twin(which, request, tokenizer, folder):
    model = request.getfixturevalue(which)
    acc, acc_norm = TaskSuite(["farms_after"], include_path=folder).run(model, tokenizer, batch_size=7)
    expected = slow_accuracies(model, tokenizer, questions())
    assert [acc.record.value, acc_norm.record.value] == pytest.approx(expected)
    assert (acc.record.metric, acc_norm.record.metric) == ("acc", "acc_norm")
    n, p = len(WORDS), acc.record.value
    assert acc.record.stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert (acc.record.num_samples, acc.record.total_samples, acc.record.version) == (n, n, "2.0")
    assert acc.record.num_fewshot == 0


def test_groups_and_all_kinds_equal_what_lm_eval_says_itself(demo, tokenizer, folder, own_tasks):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["farms_both", "farms_text", "farms_written"]
    scores = TaskSuite(names, include_path=folder, num_fewshot=None).run(demo, tokenizer)
    with quiet.quiet_lm_eval():
        theirs = lm_eval.simple_evaluate(
            HFLM(pretrained=demo, tokenizer=tokenizer, batch_size=8),
            tasks=names,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=tasks.BOOTSTRAPS,
        )
    assert {s.record.task for s in scores} == set(names)
    for score in scores:
        found = theirs["results"][score.record.task]
        assert score.record.value == found[f"{score.record.metric},none"]
        stderr = found[f"{score.record.metric}_stderr,none"]
        assert score.record.stderr == (None if stderr == "N/A" else stderr)
        assert score.record.num_samples == found["sample_len"]
    both, n = scores[0].record, len(WORDS)
    after, before = (slow_accuracies(demo, tokenizer, rows)[0] for rows in (questions(), questions(1)[:9]))
    assert both.value == pytest.approx((after * n + before * 9) / (n + 9))
    assert (both.task, both.num_samples, both.total_samples, both.version) == ("farms_both", n + 9, n + 9, "3.0")


def test_text_and_written_answers_equal_the_slow_twin(demo, tokenizer, folder):
    words, _, _, written = TaskSuite(["farms_text", "farms_written"], include_path=folder).run(demo, tokenizer)
    texts = [f"The {word} of the people." for word in WORDS[:4]]
    ids = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    likelihood = sum(slow_log_likelihood(demo, sequence, 1) for sequence in ids)
    assert words.record.metric == "word_perplexity"
    assert words.record.value == pytest.approx(math.exp(-likelihood / sum(len(t.split()) for t in texts)), rel=1e-4)
    assert words.answers is None
    assert written.record.value == 0.5
    assert written.answers == (0, 1, 0, 1, 0, 1)


def test_limit_and_examples(demo, tokenizer, folder):
    seen = []
    suite = TaskSuite(["farms_after"], include_path=folder, limit=4, num_fewshot=2)
    acc, _ = suite.run(demo, tokenizer, progress=lambda *step: seen.append(step))
    assert (acc.record.num_samples, acc.record.total_samples, acc.record.num_fewshot) == (4, len(WORDS), 2)
    assert seen == [("loglikelihood", done, 12) for done in range(1, 13)]
    assert suite.run(demo, tokenizer)[0] == acc


def test_examples_that_a_task_does_not_take_are_reported(folder):
    with pytest.warns(HfFarmsWarning, match="num_fewshot is fixed at 0 by farms_before; 3 is ignored"):
        TaskSuite(["farms_after", "farms_before"], include_path=folder, num_fewshot=3)


def test_nothing_is_printed(demo, tokenizer, folder, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        TaskSuite(["farms_before", "farms_written"], include_path=folder).run(demo, tokenizer)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.name.startswith("lm_eval") and r.levelno >= logging.INFO]


def test_bars_and_settings_are_as_before(demo, tokenizer, folder):
    from tqdm import tqdm

    begin, level = tqdm.__init__, logging.getLogger("lm_eval").level
    TaskSuite(["farms_before"], include_path=folder).run(demo, tokenizer)
    assert tqdm.__init__ is begin
    assert logging.getLogger("lm_eval").level == level
    assert "DISABLE_MULTIPROC" not in os.environ
    assert not tqdm([], disable=False).disable


def test_blocks_on_disk_give_the_same_answers(tokenizer, folder):
    suite = TaskSuite(["farms_after", "farms_written"], include_path=folder, limit=6)
    whole, streamed = load_model("demo"), load_model("demo", stream=True)
    with streamed.source.whole():
        assert suite.run(streamed.model, tokenizer) == suite.run(whole.model, tokenizer)


def test_long_questions_are_reported(tokenizer, folder):
    small = tiny("llama", vocab_size=2048, max_position_embeddings=20)
    with pytest.warns(HfFarmsWarning, match="prompts with their answers were longer than the 20 tokens"):
        TaskSuite(["farms_after"], include_path=folder, limit=2).run(small, tokenizer)


def test_a_pair_has_a_smaller_error_than_two_results(demo, random_model, tokenizer, folder):
    suite = TaskSuite(["farms_after", "farms_before"], include_path=folder)
    mine, dense = suite.run(random_model, tokenizer), suite.run(demo, tokenizer)
    for record, score, other in zip(compare_tasks(mine, dense), mine, dense, strict=True):
        assert (record.value, record.dense) == (score.record.value, other.record.value)
        if record.metric == "mcc":
            assert record.difference_stderr is None
        else:
            deltas = torch.tensor(score.answers) - torch.tensor(other.answers)
            assert record.difference_stderr == pytest.approx(float(deltas.std()) / math.sqrt(len(deltas)))
    same = compare_tasks(mine, mine)
    assert [r.difference_stderr for r in same] == [0, 0, 0, None]
    assert compare_tasks(mine, ()) == tuple(score.record for score in mine)


def record(**changes):
    fields = {"task": "t", "metric": "acc", "value": 0.5, "stderr": 0.1, "num_fewshot": 0, "num_samples": 10}
    return TaskRecord(**{**fields, "version": "1", **changes})


def test_results_are_merged_by_task_metric_and_examples():
    old = (record(dense=0.6, dense_stderr=0.1, difference_stderr=0.05), record(num_fewshot=5), record(metric="f1"))
    new = (record(value=0.4), record(task="u"))
    again, few, f1, other = merge_tasks(old, new)
    assert again == replace(old[0], value=0.4)
    assert (few, f1, other) == (old[1], old[2], new[1])
    assert merge_tasks(old, [record(version="2")])[0].dense is None
    assert merge_tasks([record(num_samples=3, dense=0.6)], [record()])[0] == record()


def test_fewer_questions_do_not_replace_more():
    with pytest.warns(HfFarmsWarning, match="t keeps its result on 10 questions; the new one is on 3"):
        assert merge_tasks([record()], [record(num_samples=3)]) == (record(),)


def test_pairs_need_the_same_questions():
    mine = TaskScore(record(), (1.0, 0.0), ("a", "b"))
    with pytest.raises(AssertionError, match="must be of the same questions"):
        compare_tasks([mine], [replace(mine, questions=("a", "c"))])


def test_a_result_that_is_no_number_is_left_out(folder, tmp_path):
    suite = TaskSuite(["farms_before"], include_path=folder)
    results = {
        "results": {"farms_before": {"acc,none": math.nan, "acc_stderr,none": "N/A", "sample_len": 9}},
        "n-shot": {},
        "versions": {},
        "samples": {},
    }
    with pytest.warns(HfFarmsWarning, match="farms_before has no finite acc; it is left out"):
        assert suite._scores(results, "farms_before") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0, got -1"),
        ({"include_path": "nowhere"}, "include_path must be a folder with YAML files of tasks, got 'nowhere'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TaskSuite(["farms_after"], **options)


def test_an_unknown_task_gets_a_proposal(folder, own_tasks):
    with pytest.raises(ValueError, match=r"names that lm-eval knows, got 'farms_aftr'\. Did you mean 'farms_after'"):
        TaskSuite(["farms_after", "farms_aftr"], include_path=folder)


def test_missing_questions_are_explained(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "farms_after.jsonl").unlink()
    with pytest.raises(DataError, match="task must have questions that can be loaded, got 'farms_after'"):
        TaskSuite(["farms_after"], include_path=tmp_path)


def test_a_hub_that_cannot_be_reached_is_named_at_once():
    code = (
        "from hf_farms.metrics.quiet import require_hub\nfrom hf_farms.errors import DataError\n"
        "try:\n    require_hub()\nexcept DataError as error:\n    print(error, error.hint)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert "http://127.0.0.1:9 cannot be reached (ConnectError)" in done.stdout
    assert "set HF_HUB_OFFLINE=1" in done.stdout
    assert done.stderr == ""


def test_code_that_a_model_writes_is_not_run(tmp_path):
    write_tasks(tmp_path)
    path = tmp_path / "farms_written.yaml"
    path.write_text(path.read_text() + "unsafe_code: true\n")
    with pytest.raises(ValueError, match="tasks must use only text, got 'farms_written', which would run code"):
        TaskSuite(["farms_written"], include_path=tmp_path)


def test_a_model_that_cannot_answer_is_named(tokenizer, folder):
    suite = TaskSuite(["farms_after"], include_path=folder, limit=1)
    with pytest.raises(ModelError, match="tasks must run on this model, got "):
        suite.run(tiny_bert(), tokenizer)
    # lm-eval asserts without a word.
    with pytest.raises(ModelError, match=r"AssertionError: assert len\(continuation_enc\) <= self.max_length"):
        suite.run(tiny("llama", vocab_size=2048, max_position_embeddings=2), tokenizer)


@pytest.mark.parametrize(
    ("found", "message"),
    [(None, "tasks need lm-eval, which is not installed"), ("0.4.9.1", "must be 0.4.13 or newer, got 0.4.9.1")],
)
def test_lm_eval_must_be_there_and_new_enough(found, message, monkeypatch, folder):
    def version(name):
        if found is None:
            raise quiet.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(quiet, "version", version)
    with pytest.raises(HfFarmsError, match=message) as caught:
        TaskSuite(["farms_after"], include_path=folder)
    assert caught.value.hint == 'pip install -U "hf-farms[eval]"'
