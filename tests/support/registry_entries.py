"""Functions that entries of tests name by their import path."""


def remove_first(weight, measured, removal):
    """A method: the first weights in memory are removed, whatever they are."""
    pruned = weight.clone().reshape(-1)
    pruned[: removal.count] = 0
    return pruned.view_as(weight)


def deeper_is_sparser(blocks, config):
    """An allocation that reads no weights: sparsities rise with depth, around the total."""
    middle = (len(blocks.sizes) - 1) / 2
    return [config.sparsity + 0.02 * (index - middle) for index in range(len(blocks.sizes))]


def mean_outlier(layers):
    """A score of a block by its activations: mean over layers of their largest |W| ||X|| over the mean one."""
    ratios = []
    for layer in layers:
        products = layer.view.read().abs().float() * layer.inputs
        ratios.append(float(products.max() / products.mean()))
    return sum(ratios) / len(ratios)


def too_many(blocks, config):
    """An allocation that returns a number too many."""
    return [config.sparsity] * (len(blocks.sizes) + 1)


def fit_largest(eigenvalues, config):
    """A fit: alpha is the number of eigenvalues, and the tail starts at the largest."""
    import torch

    from hf_farms.spectra.powerlaw import TailFit

    size = eigenvalues.new_full((len(eigenvalues),), float(eigenvalues.shape[-1]))
    return TailFit(size, torch.zeros_like(size), eigenvalues[:, -1])


def largest_only(alphas, *, max_scale):
    """A map: the largest alpha gets the largest scale, all others keep the learning rate."""
    return [max_scale if alpha == max(alphas) else 1.0 for alpha in alphas]


def count_down(coupled, calibration):
    """A strategy: the first unit of every structure has the highest score; reads the calibration data."""
    import torch

    assert len(list(calibration)) == 2
    return [[-torch.arange(structure.units).float() for structure in block] for block in coupled.structures]


def one_score(coupled, calibration):
    """A strategy that scores one unit only."""
    import torch

    return [[torch.ones(1) for _ in block] for block in coupled.structures]


class ToyCheckpoint:
    """A checkpoint of one file, which names the folder of the model that is loaded instead."""

    def __init__(self, path):
        self._path = path
        self.replaced_by = "its twin was loaded"

    def transformers_path(self, *, tokenizer):
        return self._path.read_text()


def find_toy(model, *, allow_pickle):
    """A converted format: a folder with a file weights.toy."""
    path = model.folder / "weights.toy" if model.folder is not None else None
    return ToyCheckpoint(path) if path is not None and path.is_file() else None


def find_other_name(find):
    """A format that transformers reads: safetensors under another name."""
    return find("other.safetensors")


class Doubled:
    """A recovery: twice the kept weights, with errors that show that it saw a pruned block."""

    def __init__(self, block, folder=None):
        self._block = block
        assert not any((layer.read() == 0).sum() > layer.read().numel() / 4 for layer in block.layers)

    def dense_run(self):
        """Nothing is recorded."""
        from contextlib import nullcontext

        return nullcontext()

    def fit(self, runs, config, acceptance=()):
        """Check the runs, and double."""
        from hf_farms.reports import RecoveredPart

        assert runs
        for layer in self._block.layers:
            weight = layer.read()
            assert (weight == 0).sum() > weight.numel() / 4
            layer.write_(2 * weight)
        return (RecoveredPart(name=self._block.metadata.name, error_before=0.5, error=0.25, accepted=True),)
