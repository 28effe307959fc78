"""Trainings of all kinds of models -> the task, the metrics and the quick start of the card."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from cards import farms_lr
from families import family_model
from hf_farms_cards import render_card, write_card
from hf_farms_cards.quick_start import Checkpoint
from huggingface_hub import ModelCard
from quick_start import quick_start, run
from torch.utils.data import Dataset
from trainers import Tokens, arguments, trainer, word_level

from hf_farms import FarmsLRCallback, FarmsLRConfig
from hf_farms.callbacks.recording import task_of
from hf_farms.reports import REPORT_NAME, BaseModelRecord
from hf_farms.reports.folders import load_report, training_report
from hf_farms.reports.metrics import best_step, trained_metrics
from hf_farms.reports.recording import record_training

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*pin_memory.*",
        "ignore:.*lr_scheduler.step.*before.*:UserWarning",
        "ignore:FarmsLRCallback had no effect",
    ),
    pytest.mark.usefixtures("undrawn"),
]

STILL = FarmsLRConfig(start=0, frozen=True)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "vocab_size": 100}


def bert(head, **options):
    torch.manual_seed(0)
    return getattr(transformers, f"BertFor{head}")(transformers.BertConfig(**TEXT, **options))


class Labeled(Dataset):
    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 32

    def __getitem__(self, index):
        source = torch.Generator().manual_seed(index)
        return {"input_ids": torch.randint(5, 99, (8,), generator=source), "labels": self.label}


def accuracy(prediction):
    hits = (prediction.predictions.argmax(-1) == prediction.label_ids).mean()
    return {"accuracy": float(hits), "entropy_of_classes": 0.5, "note": "text"}


def classifier(folder, **options):
    """A training whose evaluation gets worse: all its labels are others."""
    args = arguments(
        folder,
        max_steps=6,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=1,
        **{"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, **options},
    )
    return transformers.Trainer(
        model=bert("SequenceClassification"),
        args=args,
        train_dataset=Labeled(0),
        eval_dataset=Labeled(1),
        compute_metrics=accuracy,
        callbacks=[FarmsLRCallback(STILL)],
    )


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """The folder of a training whose best model is not its last, and what the saved model has for a loss."""
    folder = tmp_path_factory.mktemp("trained") / "best"
    run = classifier(folder)
    run.train()
    run.save_model()
    step = run.state.best_global_step
    assert step < 6
    return folder, step, run.evaluate()


def header(text):
    return ModelCard(text).data


def test_the_numbers_are_those_of_the_model_that_is_saved(best):
    folder, step, true = best
    report = load_report(folder)
    assert report.best_step == step
    assert report.steps == 6
    assert report.metrics["eval_loss"] == pytest.approx(true["eval_loss"], abs=1e-5)
    assert report.metrics["eval_accuracy"] == pytest.approx(true["eval_accuracy"])
    card = write_card(report, folder).read_text(encoding="utf-8")
    assert f"Loss on the evaluation set: {true['eval_loss']:.4f} after {step} steps, the best of 6." in card
    results = {result.metric_name: result for result in header(card).eval_results}
    assert results["loss"].metric_value == pytest.approx(true["eval_loss"], abs=1e-3)
    assert results.keys() == {"loss", "accuracy", "entropy_of_classes"}
    assert {result.task_type for result in results.values()} == {"text-classification"}
    assert header(card).pipeline_tag == "text-classification"


def test_the_files_alone_tell_which_model_was_saved(best, tmp_path):
    folder, step, true = best
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / REPORT_NAME).unlink()
    report = training_report(copy)
    assert report.best_step == step
    assert report.metrics["eval_loss"] == pytest.approx(true["eval_loss"], abs=1e-5)
    # Another model lies there, or the checkpoint is gone: nothing says that it is the best one.
    shutil.copy(copy / "checkpoint-6" / "model.safetensors", copy / "model.safetensors")
    last = training_report(copy)
    assert (last.best_step, last.metrics["eval_loss"] > report.metrics["eval_loss"]) == (None, True)
    shutil.rmtree(copy / f"checkpoint-{step}")
    assert training_report(copy).best_step is None


@pytest.mark.parametrize(
    "options",
    [
        {"metric_for_best_model": "accuracy", "greater_is_better": True, "save_total_limit": 1},
        {"load_best_model_at_end": False},
    ],
    ids=["accuracy", "last"],
)
def test_the_best_is_what_the_trainer_chose(options, tmp_path):
    run = classifier(tmp_path, **options)
    run.train()
    report, true = load_report(tmp_path), run.evaluate()
    assert report.metrics["eval_loss"] == pytest.approx(true["eval_loss"], abs=1e-5)
    assert report.metrics["eval_accuracy"] == pytest.approx(true["eval_accuracy"])
    assert (report.best_step is None) == (options.get("load_best_model_at_end") is False)


@pytest.mark.parametrize(
    ("checkpoint", "step", "found"),
    [
        (None, 3, None),
        ("out/checkpoint-2", 3, 2),
        ("out/run-1/checkpoint-40/", None, 40),
        ("out/best", 3, 3),
        ("out/best", None, None),
    ],
)
def test_the_saved_model_is_that_of_a_checkpoint(checkpoint, step, found):
    """The best evaluation may have been at a step that was not saved."""
    assert best_step(SimpleNamespace(best_model_checkpoint=checkpoint, best_global_step=step)) == found


def test_what_trainers_count_is_no_result():
    """As TRL writes it: its own numbers after those of the Trainer, `compute_metrics` before."""
    evaluation = {
        "eval_loss": 2.0,
        "eval_model_preparation_time": 0.01,
        "eval_f1": 0.5,
        "eval_clip_ratio": 0.1,
        "eval_runtime": 1.0,
        "eval_samples_per_second": 8.0,
        "eval_steps_per_second": 1.0,
        "eval_num_tokens": 768.0,
        "eval_entropy": 3.0,
        "eval_mean_token_accuracy": 0.1,
        "eval_rewards/margins": 0.3,
        "epoch": 1.0,
        "step": 4,
    }
    summary = {"train_loss": 2.5, "train_runtime": 3.0, "total_flos": 1e9, "step": 8}
    log = [{"loss": 3.0, "entropy": 4.0, "num_tokens": 7.0, "learning_rate": 1e-3, "step": 4}, evaluation, summary]
    assert trained_metrics(log) == {
        "loss": 3.0,
        "eval_loss": 2.0,
        "eval_f1": 0.5,
        "eval_clip_ratio": 0.1,
        "train_loss": 2.5,
    }
    # Also where another trainer puts them first, and in reports that have them already.
    odd = {"eval_num_tokens": 1.0, "eval_loss": 2.0, "eval_entropy": 1.0, "step": 4}
    assert trained_metrics([odd]) == {"eval_loss": 2.0}
    text = render_card(replace(farms_lr(), metrics={**evaluation, "eval_nan": math.nan}), repo_id="me/x")
    assert {r.metric_name for r in header(text).eval_results} == {"loss", "f1", "clip_ratio", "rewards/margins"}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_sft_of_trl_has_one_result(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"input_ids": Tokens().ids[i].tolist()} for i in range(16)])
    args = trl.SFTConfig(
        output_dir=str(tmp_path),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=12,
        bf16=False,
        **{name: getattr(arguments(tmp_path), name) for name in ("use_cpu", "disable_tqdm", "save_strategy")},
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        report_to="none",
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level(), pad_token="0", eos_token="1")
    run = trl.SFTTrainer(
        model=family_model("llama"), args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer
    )
    run.add_callback(FarmsLRCallback(STILL))
    run.train()
    assert any("eval_num_tokens" in entry for entry in run.state.log_history)
    assert load_report(tmp_path).metrics.keys() == {"train_loss", "eval_loss"}


def test_several_evaluation_sets_have_their_own_numbers(tmp_path):
    run = trainer(tmp_path, FarmsLRCallback(STILL), max_steps=2, eval_strategy="steps", eval_steps=2)
    run.eval_dataset = {"near": Tokens(4), "far": Tokens(8)}
    run.train()
    assert {"eval_near_loss", "eval_far_loss"} <= load_report(tmp_path).metrics.keys()


T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
VIT = {**SMALL, "image_size": 16, "patch_size": 8}
CLASSES = "text-classification"
# The model, its task, what its quick start prints with a tokenizer (or processor) and without.
MODELS = {
    "causal": (lambda: family_model("llama"), "text-generation", "The people", "tensor([["),
    "classifier": (
        lambda: bert("SequenceClassification", num_labels=3),
        "text-classification",
        "[{'label'",
        "LABEL_0 ",
    ),
    "regression": (
        lambda: bert("SequenceClassification", num_labels=1),
        "text-classification",
        "[{'label'",
        "LABEL_0 ",
    ),
    "tokens": (lambda: bert("TokenClassification", num_labels=4), "token-classification", "[{'entity'", "['LABEL_"),
    "masked": (lambda: bert("MaskedLM"), "fill-mask", "[{'score'", "tensor(["),
    "questions": (lambda: bert("QuestionAnswering"), "question-answering", "Answer:", "Answer: "),
    "encoder": (
        lambda: transformers.BertModel(transformers.BertConfig(**TEXT)),
        "feature-extraction",
        "torch.Size([1, ",
        "torch.Size([1, 4, 32])",
    ),
    "seq2seq": (
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)),
        "text2text-generation",
        "",
        "tensor([[",
    ),
    "images": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, num_labels=3)),
        "image-classification",
        "[{'label'",
        "LABEL_0 ",
    ),
    "choices": (lambda: bert("MultipleChoice"), "multiple-choice", "", " parameters"),
}


def trained(folder, model, **record):
    """A report as a training of this model writes it, from its state alone."""
    args, state = arguments(folder), transformers.TrainerState(log_history=[{"eval_loss": 1.5, "step": 1}])
    record_training(args, state, model, task=task_of(model), farms_lr=STILL, **record)
    return load_report(folder)


def words():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "The": 3, "people": 4, "river": 5, "house": 6}
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("beside", [True, False], ids=["tokenizer", "bare"])
def test_the_card_says_the_task_and_its_quick_start_does_it(kind, beside, tmp_path, monkeypatch):
    make, task, with_tokenizer, bare = MODELS[kind]
    model, folder = make(), tmp_path / "model"
    model.save_pretrained(folder)
    if beside and kind == "images":
        transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    elif beside:
        words().save_pretrained(folder)
    report = trained(folder, model)
    card = write_card(report, folder)
    data = header(card.read_text(encoding="utf-8"))
    assert (data.pipeline_tag, data.eval_results[0].task_type) == (task, task)
    code = quick_start(card)
    assert "are zero" not in code
    shown = run(code, folder, monkeypatch)
    assert shown.startswith(with_tokenizer) if beside else bare in shown


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BartForConditionalGeneration", "text2text-generation"),
        ("BartForSequenceClassification", "text-classification"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("Qwen2VLForConditionalGeneration", "image-text-to-text"),
        ("M2M100ForConditionalGeneration", "text2text-generation"),
        ("DetrForObjectDetection", "object-detection"),
        ("ASTForAudioClassification", "audio-classification"),
        ("LlamaForSequenceClassification", "text-classification"),
        ("GPT2ForTokenClassification", "token-classification"),
        ("CLIPModel", "zero-shot-image-classification"),
        ("LlamaModel", None),
    ],
)
def test_the_task_is_that_of_transformers_own_mappings(name, task):
    kind = getattr(transformers, name)
    # As FSDP2 makes it.
    wrapped = type(f"FSDP{name}", (kind,), {})
    for found in (kind, wrapped):
        assert task_of(object.__new__(found)) == task
    if task is not None:
        report = replace(farms_lr(), task=task, architecture=name)
        assert header(render_card(report, checkpoint=Checkpoint(architecture=name))).pipeline_tag == task


def test_the_base_models_task_is_not_that_of_a_classifier_made_of_it():
    base = BaseModelRecord(repo_id="google-bert/bert-base-uncased", license="apache-2.0", pipeline_tag="fill-mask")
    report = replace(farms_lr(), model="google-bert/bert-base-uncased", model_type="bert", base=base)
    found = [
        header(render_card(replace(report, task=task), checkpoint=Checkpoint(architecture=architecture))).pipeline_tag
        for task, architecture in (("text-classification", None), (None, "BertForTokenClassification"), (None, None))
    ]
    assert found == ["text-classification", "token-classification", "fill-mask"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_have_the_task_of_the_model_inside(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(bert("SequenceClassification"), peft.LoraConfig(r=2, target_modules=["query"]))
    run = transformers.Trainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=Labeled(0),
        callbacks=[FarmsLRCallback(STILL)],
    )
    run.train()
    report = load_report(tmp_path)
    assert (report.task, report.architecture) == ("text-classification", "BertForSequenceClassification")
    assert json.loads((tmp_path / REPORT_NAME).read_text())["task"] == "text-classification"
