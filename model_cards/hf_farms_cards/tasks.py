"""Find the task of a model, by its name on the Hub, and the auto class that loads it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Task", "task_of"]


@dataclass(frozen=True)
class Task:
    """Name of a task on the Hub, and the auto class of transformers for it."""

    pipeline_tag: str
    auto_class: str


# Auto class of each task.
AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "image-text-to-text": "AutoModelForImageTextToText",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "table-question-answering": "AutoModelForTableQuestionAnswering",
    "document-question-answering": "AutoModelForDocumentQuestionAnswering",
    "visual-question-answering": "AutoModelForVisualQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "image-classification": "AutoModelForImageClassification",
    "image-segmentation": "AutoModelForImageSegmentation",
    "video-classification": "AutoModelForVideoClassification",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
    "object-detection": "AutoModelForObjectDetection",
    "depth-estimation": "AutoModelForDepthEstimation",
    "audio-classification": "AutoModelForAudioClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "feature-extraction": "AutoModel",
}
TASKS = {tag: Task(tag, auto_class) for tag, auto_class in AUTO_CLASSES.items()}
# Suffix of a transformers class name -> task. Most suffixes are those of the auto class; the others follow.
ENDINGS = {
    **{
        auto_class.removeprefix("AutoModel"): TASKS[tag]
        for tag, auto_class in AUTO_CLASSES.items()
        if "For" in auto_class
    },
    "LMHeadModel": TASKS["text-generation"],
    "ForSemanticSegmentation": Task("image-segmentation", "AutoModelForSemanticSegmentation"),
    "ForUniversalSegmentation": Task("image-segmentation", "AutoModelForUniversalSegmentation"),
    "ForCTC": Task("automatic-speech-recognition", "AutoModelForCTC"),
}
# Tasks by `config.model_type`, if nothing else is known; all other models are causal language models.
BY_MODEL_TYPE = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert"), "fill-mask"),
    **dict.fromkeys(("vit", "deit", "swin", "convnext", "resnet", "dinov2"), "image-classification"),
}
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "marian", "umt5")
WITH_IMAGES = ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "mllama", "llama4", "idefics3")


def task_of(model_type: str, architecture: str | None = None, *, tag: str | None = None) -> Task:
    """Return the task of a model.

    Args:
        model_type: `model_type` of its config.
        architecture: class that saved the model; None if unknown, then the model type is used.
        tag: recorded name of its task on the Hub; None if not recorded.
    """
    any_task = TASKS["feature-extraction"]
    by_name = next((task for end, task in ENDINGS.items() if architecture and architecture.endswith(end)), None)
    if tag is not None:
        return by_name if by_name and by_name.pipeline_tag == tag else TASKS.get(tag, Task(tag, "AutoModel"))
    if by_name is not None:
        return by_name
    if architecture is None or architecture.endswith("ForConditionalGeneration"):
        if model_type in ENCODER_DECODERS:
            return TASKS["text2text-generation"]
        if model_type in WITH_IMAGES:
            return TASKS["image-text-to-text"]
    return any_task if architecture is not None else TASKS[BY_MODEL_TYPE.get(model_type, "text-generation")]
