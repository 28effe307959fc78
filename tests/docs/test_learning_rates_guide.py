"""The guide of layer-wise learning rates: its code runs in order."""

import re
from pathlib import Path

import pytest
from models import tiny
from trainers import trainer

GUIDE = Path(__file__).parents[2] / "docs" / "learning-rates.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_code_of_the_guide_runs(tmp_path):
    model, made = tiny("llama"), []

    def make_trainer(callbacks, optimizer_cls_and_kwargs=None):
        made.append(trainer(tmp_path / str(len(made)), callbacks[0], model=model, max_steps=2))
        made[-1].optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        return made[-1]

    values = {"model": model, "make_trainer": make_trainer}
    for code in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        exec(compile(code, str(GUIDE), "exec"), values)
    # The last one is for DeepSpeed.
    assert [run.state.global_step for run in made] == [2, 2, 2, 2, 0]
    assert values["factors"]["^lm_head\\.weight$"] == 1.0
