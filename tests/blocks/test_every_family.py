"""Every family of transformers' auto mappings: saved, analyzed, and pruned in memory and from disk.

`make test-slow` prints a table; a family that does not build tiny stands in it with the reason.
"""

import warnings
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from auto_families import MAPPINGS, NotTiny, build, families

from hf_farms.config import PruneConfig
from hf_farms.errors import HfFarmsError
from hf_farms.loading.opening import load_model, open_model
from hf_farms.output.checkpoint import CheckpointWriter
from hf_farms.pruning.pruner import prune
from hf_farms.spectra.analysis import analyze

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@dataclass
class Row:
    """What was found of a family: a word or a sentence for each column, and what is wrong."""

    family: str
    columns: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def attempt(self, column, function):
        """The result; of a refusal its sentence, of anything else a fault."""
        try:
            return function()
        except HfFarmsError as error:
            self.columns[column] = str(error)
        except Exception as error:
            ours = isinstance(error, ValueError) and " must " in str(error)
            self.columns[column] = f"{type(error).__name__}: {error}"
            if not ours:
                self.faults.append(f"{column}: {self.columns[column]}")
        return None


def batch_of(kind, model, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "image":
        channels = getattr(model.config, "num_channels", 3)
        return {"pixel_values": torch.randn(2, channels, 16, 16, generator=generator)}
    ids = torch.randint(5, 99, (2, 17), generator=generator)
    return {"input_ids": ids, "decoder_input_ids": ids} if kind == "seq2seq" else {"input_ids": ids}


def litter():
    """Leave NaN where memory that is not initialized may come from."""
    return [torch.full((size,), float("nan")) for size in (16, 64, 256, 1024, 4096) for _ in range(32)] and None


def loaded(folder, stream):
    litter()
    return load_model(str(folder), tokenizer=False, stream=stream, device="cpu").source


def same(one, other):
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


def other_buffers(whole, streamed):
    """Names of the buffers that are not those in memory."""
    expected, different = dict(whole.model.named_buffers()), []
    seen = set()
    for index in range(len(whole)):
        streamed.open(index)
        prefix = f"{whole.metadata(index).name}."
        found = dict(streamed.model.named_buffers())
        inside = {name for name in expected if name.startswith(prefix)}
        different += [name for name in inside if not same(found[name], expected[name])]
        seen |= inside
    return [*different, *(name for name in expected.keys() - seen if not same(found[name], expected[name]))]


def written(source, folder, method, batches):
    """Prune into a folder; what its shards hold."""
    folder.mkdir()
    writer = CheckpointWriter(source.model, folder, len(source), records=folder / "records")
    source.attach(writer)
    prune(source, PruneConfig(method=method, allocation="uniform", sparsity=0.4), calibration=batches)
    writer.finish(None, [source.metadata(index).name for index in range(len(source))])
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def check_reloads(row, source, folder):
    """The checkpoint is whole, and has the routers of the dense model."""
    again, info = type(source.model).from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["mismatched_keys"]:
        row.faults.append(f"missing after pruning: {sorted(info['missing_keys'])[:3]}")
    for index in range(len(source)):
        for layer in source.metadata(index).layers:
            if layer.role == "router" and not bool((again.get_parameter(layer.parameter) != 0).all()):
                row.faults.append(f"router pruned: {layer.name}")


def examine(kind, family, folder):
    row = Row(family)
    try:
        model = build(*families(kind)[family])
        model.save_pretrained(folder / "model")
    except NotTiny as error:
        row.columns["not built"] = str(error)
        return row
    except Exception as error:
        row.columns["not built"] = f"cannot be saved: {type(error).__name__}: {error}"
        return row
    whole = row.attempt("memory", lambda: loaded(folder / "model", False))
    streamed = row.attempt("streamed", lambda: loaded(folder / "model", True))
    row.attempt("analyze", lambda: analyze(open_model(str(folder / "model"))))
    if whole is None or streamed is None:
        if (whole is None) != (streamed is None):
            row.faults.append("only in memory or only streamed")
        return row
    layers = [layer for index in range(len(whole)) for layer in whole.metadata(index).layers]
    row.columns["blocks"] = str(len(whole))
    routers = sorted({layer.parameter.split(".", 3)[-1] for layer in layers if layer.role == "router"})
    row.columns["routers"] = ", ".join(routers)
    different = row.attempt("buffers", lambda: other_buffers(whole, streamed))
    if different is not None:
        row.columns["buffers"] = "equal" if not different else f"different: {different[:3]}"
        row.faults += [f"buffer {name}" for name in different]
    for method in ("magnitude", "wanda"):
        results, sentences = [], []
        for stream in (False, True):
            source = loaded(folder / "model", stream)
            batches = [batch_of(kind, source.model, seed) for seed in (1, 2)]
            row.columns.pop(method, None)
            target = folder / f"{method} {stream}"
            results.append(row.attempt(method, lambda s=source, t=target, b=batches, m=method: written(s, t, m, b)))
            sentences.append(row.columns.get(method))
            if results[-1] is not None and method == "magnitude" and not stream:
                row.attempt("reload", lambda s=source, t=target: check_reloads(row, s, t))
        if sentences[0] != sentences[1] or results[0] != results[1]:
            row.columns[method] = f"in memory: {sentences[0] or 'done'}; streamed: {sentences[1] or 'done'}"
            row.faults.append(f"{method} differs: {row.columns[method]}")
        elif results[0] is not None:
            row.columns[method] = "equal"
    return row


@pytest.mark.parametrize("kind", MAPPINGS)
def test_every_family(kind, tmp_path, capsys):
    transformers.logging.set_verbosity_error()
    rows = []
    for family in families(kind):
        folder = tmp_path / family.replace("/", "-")
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(examine(kind, family, folder))
    built = [row for row in rows if "not built" not in row.columns]
    with capsys.disabled():
        print(f"\n{kind}: {len(rows)} families, {len(built)} built tiny")
        for column in ("magnitude", "wanda"):
            equal = sum(row.columns.get(column) == "equal" for row in built)
            print(f"  {column}: {equal} equal in memory and streamed, {len(built) - equal} refused")
        for row in rows:
            print(f"  {row.family}: " + "; ".join(f"{name} {text}" for name, text in row.columns.items() if text))
    assert {row.family: row.faults for row in rows if row.faults} == {}
    assert len(built) > len(rows) / 2
