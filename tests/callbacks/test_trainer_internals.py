"""One file of hf_farms knows how a Trainer works inside."""

import ast
from pathlib import Path

import hf_farms

ROOT = Path(hf_farms.__file__).parent
INTERNALS = ROOT / "callbacks" / "trainer.py"
PUBLIC = {"TrainerCallback", "TrainerControl", "TrainerState", "TrainingArguments"}
MODULES = ("transformers.trainer", "transformers.training_args", "transformers.optimization")


def trainer_imports(path):
    """Names that a file imports of the Trainer, or its modules, as `module.name`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name
        for name in names
        if name.startswith(MODULES) or (name.startswith("transformers.Train") and name.split(".")[1] not in PUBLIC)
    }


def test_no_other_file_imports_the_internals_of_the_trainer():
    imports = {path: trainer_imports(path) for path in ROOT.rglob("*.py") if path != INTERNALS}
    # A recovery that runs one.
    assert {str(path.relative_to(ROOT)): names for path, names in imports.items() if names} == {
        "distillation/training.py": {"transformers.Trainer"}
    }
    assert trainer_imports(INTERNALS) == {
        "transformers.Trainer",
        "transformers.trainer.TRAINER_STATE_NAME",
        "transformers.trainer_callback.ExportableState",
        "transformers.trainer_callback.PrinterCallback",
        "transformers.trainer_callback.ProgressCallback",
        "transformers.trainer_utils.PREFIX_CHECKPOINT_DIR",
    }


def test_no_other_file_walks_the_stack_or_reads_the_environment_of_accelerate():
    paths = {
        string: {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if string in path.read_text("utf-8")}
        for string in ("sys._getframe", "ACCELERATE_", "transformers.integrations")
    }
    assert paths == {
        # Warnings name the line of the user.
        "sys._getframe": {"callbacks/trainer.py", "config/renamed.py"},
        # Processes that work alone hide that they were launched.
        "ACCELERATE_": {"callbacks/trainer.py", "processes/launched.py"},
        # Dequantization is not the Trainer's.
        "transformers.integrations": {"callbacks/trainer.py", "blocks/weights.py"},
    }


def test_no_other_callback_has_a_mark_for_the_optimizer():
    paths = {path.name for path in (ROOT / "callbacks").glob("*.py") if '"_hf_farms_' in path.read_text("utf-8")}
    # `lora_masks.py` marks layers, and reads no mark of the optimizer.
    assert paths == {"trainer.py", "lora_masks.py"}
