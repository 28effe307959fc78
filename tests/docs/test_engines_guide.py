"""The guide of engines: its code runs, and its launch lines have arguments that accelerate knows."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from fsdp2 import NEEDS_FSDP2
from models import tiny

GUIDE = Path(__file__).parents[2] / "docs" / "engines.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="needs the source tree")


def blocks(language):
    return [code for kind, code in BLOCK.findall(GUIDE.read_text(encoding="utf-8")) if kind == language]


@NEEDS_FSDP2
def test_the_code_of_the_guide_runs():
    model = tiny("llama")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        values = {"model": model, "torch": torch}
        for code in blocks("python"):
            exec(compile(code, str(GUIDE), "exec"), values)
        ids = torch.zeros(1, 4, dtype=torch.long)
        model(input_ids=ids, labels=ids).loss.backward()
        values["optimizer"].step()
    finally:
        torch.distributed.destroy_process_group()


def test_launch_lines():
    lines = [line for code in blocks("bash") for line in code.replace("\\\n", " ").splitlines()]
    starts = [shlex.split(line) for line in lines if line.startswith("accelerate launch ")]
    assert len(starts) >= 3
    for _, _, *arguments in starts:
        known = launch_command_parser().parse_args(arguments)
        assert known.training_script
        assert known.num_processes == 2
    fsdp2 = launch_command_parser().parse_args(next(start[2:] for start in starts if "--use_fsdp" in start))
    assert int(fsdp2.fsdp_version) == 2
