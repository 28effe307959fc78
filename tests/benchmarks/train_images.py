"""A small ResNet on CIFAR-10, with and without FarmsLRCallback: accuracy.

    python tests/benchmarks/train_images.py FOLDER [--arms none farms ...] [--seeds 0 ...] [--epochs 4]

FOLDER holds train.parquet and test.parquet (columns image and label, as on the Hub). 5,000 random training images are
the validation set: choose on it, `test` is only printed. The model is transformers' ResNet with a stem for 32 x 32
pixels, trained with SGD; images are flipped and shifted by up to 4 pixels.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from training_common import Task, length_of, parser, run
from transformers import ResNetConfig, ResNetForImageClassification

SIDE = 32
SHIFT = 4
VALIDATION = 5000


def read_images(path):
    """Images `(n, 3, 32, 32)` as uint8, and labels."""
    table = pyarrow.parquet.read_table(path, columns=["image", "label"]).to_pydict()
    pixels = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"])


class Images(Dataset):
    """Normalized by the mean and deviation of each channel; flipped and shifted at random on request."""

    def __init__(self, pixels, labels, statistics, *, augment=False):
        edge = SHIFT if augment else 0
        self.pixels, self.labels = nn.functional.pad(pixels, [edge] * 4), labels
        self.mean, self.std = statistics
        self.augment = augment

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.pixels[index]
        if self.augment:
            top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
            image = image[:, top : top + SIDE, left : left + SIDE]
            image = image.flip(-1) if torch.rand(()) < 0.5 else image
        return {"pixel_values": (image - self.mean) / self.std, "labels": self.labels[index]}


def new_model(classes):
    """Six residual layers of two 3 x 3 convolutions at 16, 8 and 4 pixels, 0.7 million weights."""
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", num_labels=classes
    )
    model = ResNetForImageClassification(config)
    # The stem for photographs (7 x 7, then pooling) would leave 8 x 8 pixels for the first residual layer.
    stem = model.resnet.embedder
    stem.embedder.convolution = nn.Conv2d(3, config.embedding_size, 3, stride=2, padding=1, bias=False)
    stem.pooler = nn.Identity()
    return model


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def image_task(folder, **arguments):
    pixels, labels = read_images(folder / "train.parquet")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[: min(VALIDATION, len(labels) // 10)], order[min(VALIDATION, len(labels) // 10) :]
    floats = pixels[kept].float()
    statistics = floats.mean((0, 2, 3)).view(3, 1, 1), floats.std((0, 2, 3)).view(3, 1, 1)
    classes = int(labels.max()) + 1
    return Task(
        model=lambda: new_model(classes),
        train=Images(pixels[kept], labels[kept], statistics, augment=True),
        validation=Images(pixels[held_out], labels[held_out], statistics),
        test=Images(*read_images(folder / "test.parquet"), statistics),
        score=lambda found: found["eval_accuracy"],
        arguments={
            "per_device_train_batch_size": 128,
            "per_device_eval_batch_size": 500,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "weight_decay": 5e-4,
            **arguments,
        },
        trainer={
            "compute_metrics": accuracy,
            "optimizer_cls_and_kwargs": (
                torch.optim.SGD,
                {"lr": arguments["learning_rate"], "momentum": 0.9, "nesterov": True},
            ),
        },
    )


def main(arguments=None):
    found = parser(__doc__, epochs=4, lr=0.1)
    found.add_argument("folder", type=Path)
    options = found.parse_args(arguments)
    task = image_task(options.folder, **length_of(options))
    return run(task, options, metric="accuracy", baselines={"chance": 1 / (int(task.test.labels.max()) + 1)})


if __name__ == "__main__":
    main()
