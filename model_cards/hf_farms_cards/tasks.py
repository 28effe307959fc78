"""What kind of model it is -> its task, by the Hub's name, and the class that loads it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Task", "task_of"]


@dataclass(frozen=True)
class Task:
    """The Hub's name of a task, and transformers' class for it."""

    pipeline_tag: str
    auto_class: str


# The class that loads a model for each task.
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
# The end of a class name of transformers is that of the class that loads it, but for these.
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
# Where only `config.model_type` is known: what is no language model that writes.
BY_MODEL_TYPE = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "albert", "electra", "deberta-v2", "modernbert"), "fill-mask"),
    **dict.fromkeys(("vit", "deit", "swin", "convnext", "resnet", "dinov2"), "image-classification"),
}
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "marian", "umt5")
WITH_IMAGES = ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "mllama", "llama4", "idefics3")


def task_of(model_type: str, architecture: str | None = None, *, tag: str | None = None) -> Task:
    """The task of a model.

    Args:
        model_type: of its config.
        architecture: the class that it was saved from, where that is known; else the model type decides.
        tag: its task by the Hub's name, as transformers' mappings have it; None: not recorded.
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
