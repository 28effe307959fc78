"""Reports of every kind, with fixed numbers, whose cards are compared with tests/cards/golden."""

from dataclasses import replace

from hf_farms_cards.quick_start import Checkpoint

from hf_farms.config import (
    CalibrationConfig,
    EvaluationConfig,
    FarmsConfig,
    FarmsLRConfig,
    PruneConfig,
    S2FTConfig,
)
from hf_farms.reports import (
    BaseModelRecord,
    BlockSparsity,
    BlockSpectrum,
    CalibrationRecord,
    LayerSparsity,
    PerplexityRecord,
    PruneReport,
    SpectralReport,
    TaskRecord,
)
from hf_farms.reports.training import (
    BlockFactor,
    FarmsLRRecord,
    LayerSelection,
    LRMeasurement,
    S2FTRecord,
    TrainReport,
)

VERSIONS = {"python": "3.12.1", "hf-farms": "0.1.0", "torch": "2.9.0", "transformers": "5.20.0"}
RECIPE = "# hf-farms prune recipe.yaml\nmodel: meta-llama/Llama-3.1-8B\nprune:\n  sparsity: 0.6\n"


def spectra(model, alphas, stderr=0.009):
    blocks = tuple(
        BlockSpectrum(index=i, name=f"model.layers.{i}", alpha=alpha, alpha_stderr=stderr, layers=())
        for i, alpha in enumerate(alphas)
    )
    return SpectralReport(
        model=model, model_type="llama", config=FarmsConfig(), window_rows=32, blocks=blocks, versions=VERSIONS
    )


def blocks(targets):
    return tuple(
        BlockSparsity(
            index=i,
            name=f"model.layers.{i}",
            target=target,
            sparsity=target,
            layers=(LayerSparsity(name=f"model.layers.{i}.mlp.up_proj", num_weights=1000, num_zeros=500),),
        )
        for i, target in enumerate(targets)
    )


def demo():
    """The bare command on the demo: its two late blocks are pruned more."""
    alphas = [1.764, 1.690, 1.733, 2.080, 1.777, 2.086, 1.769, 1.788]
    targets = [0.4816, 0.4623, 0.4736, 0.5631, 0.4847, 0.5646, 0.4827, 0.4876]
    return PruneReport(
        versions=VERSIONS,
        model="demo",
        model_type="llama",
        config=PruneConfig(),
        dtype="bfloat16",
        blocks=blocks(targets),
        sparsity=0.5,
        parameter_sparsity=0.4018,
        num_parameters=1_009_248,
        before=spectra("demo", alphas),
        after=spectra("demo", [1.812, 1.735, 1.777, 2.067, 1.815, 2.083, 1.801, 1.812]),
        calibration=CalibrationRecord(config=CalibrationConfig(), num_sequences=32, num_tokens=8192),
        perplexity=PerplexityRecord(
            config=EvaluationConfig(),
            context_length=256,
            num_tokens=10200,
            dtype="bfloat16",
            dense=54.57,
            pruned=60.29,
            nll_difference=0.0996,
            nll_difference_stderr=0.0042,
            uniform=61.34,
            uniform_nll_difference=-0.0173,
            uniform_nll_difference_stderr=0.0021,
        ),
        command="hf-farms prune demo",
        notes=(
            "Measurement error is 0.4% of the variance between the blocks' alphas, so the spread of the sparsities was "
            "reduced from 0.1 to 0.09964.",
        ),
    )


def by_chance():
    """Alphas that differ by chance, so that all blocks lose alike, as with uniform sparsity."""
    report, alphas = demo(), [1.923, 1.907, 1.924, 1.910, 1.937, 1.916]
    same = {"uniform": 60.29, "uniform_nll_difference": 0.0, "uniform_nll_difference_stderr": 0.0}
    return replace(
        report,
        blocks=blocks([0.5] * 6),
        before=spectra("demo", alphas),
        after=spectra("demo", [alpha + 0.01 for alpha in alphas]),
        perplexity=replace(report.perplexity, **same),
        notes=(
            "The blocks' alphas differ by no more than chance, so the spread of the sparsities was reduced from "
            "0.1 to 0.",
        ),
    )


def full():
    """A gated model with license duties, more blocks than fit on a page, a baseline, tasks."""
    depth = 44
    targets = [0.55 + 0.1 * (i % 5) / 4 for i in range(depth)]
    return PruneReport(
        versions={**VERSIONS, "lm-eval": "0.4.13"},
        model="meta-llama/Llama-3.1-8B",
        model_type="llama",
        config=PruneConfig(sparsity=0.6, method="sparsegpt", pattern="N:8"),
        dtype="bfloat16",
        blocks=blocks(targets),
        sparsity=0.6,
        parameter_sparsity=0.5213,
        num_parameters=8_030_261_248,
        before=spectra("meta-llama/Llama-3.1-8B", [2 + 0.1 * (i % 5) for i in range(depth)]),
        after=spectra("meta-llama/Llama-3.1-8B", [2.1 + 0.1 * (i % 5) for i in range(depth)], stderr=None),
        calibration=CalibrationRecord(
            config=CalibrationConfig(source="allenai/c4", subset="en"), num_sequences=128, num_tokens=262_144
        ),
        perplexity=PerplexityRecord(
            config=EvaluationConfig(source="Salesforce/wikitext", subset="wikitext-2-raw-v1", max_windows=None),
            context_length=2048,
            num_tokens=341_469,
            dtype="bfloat16",
            dense=6.24,
            pruned=11.87,
            nll_difference=0.643,
            nll_difference_stderr=0.004,
            uniform=12.91,
            uniform_nll_difference=-0.084,
            uniform_nll_difference_stderr=0.003,
        ),
        base=BaseModelRecord(
            repo_id="meta-llama/Llama-3.1-8B",
            revision="d04e592bb4f6aa9cfee91e2e20afa771667e1d4b",
            license="llama3.1",
            gated=True,
            languages=("en", "de", "fr"),
            pipeline_tag="text-generation",
            files=("LICENSE", "USE_POLICY.md", "original/NOTICE"),
        ),
        tasks=(
            TaskRecord(
                task="arc_easy",
                metric="acc",
                value=0.7012,
                stderr=0.0094,
                num_fewshot=0,
                num_samples=2376,
                version="1.0",
                dense=0.8148,
                dense_stderr=0.008,
                difference_stderr=0.0085,
                total_samples=2376,
            ),
            TaskRecord(
                task="winogrande",
                metric="acc",
                value=0.731,
                stderr=0.0125,
                num_fewshot=5,
                num_samples=200,
                version="1.0",
                dense=0.738,
                dense_stderr=0.0124,
                total_samples=1267,
            ),
            TaskRecord(
                task="lambada",
                metric="perplexity",
                value=5.2,
                stderr=None,
                num_fewshot=0,
                num_samples=5153,
                version="1.0",
            ),
        ),
        command="hf-farms prune meta-llama/Llama-3.1-8B -s 0.6 --method sparsegpt --pattern N:8 --push",
        notes=("Calibration sequences have 2048 tokens.",),
    )


def minimal():
    """No spectra, no data, no perplexity, a folder on somebody's disk."""
    return PruneReport(
        versions=VERSIONS,
        model="/home/somebody/models/gpt-small",
        model_type="gpt2",
        config=PruneConfig(method="magnitude", allocation="uniform", pattern="2:4"),
        dtype="float32",
        blocks=blocks([0.5, 0.5]),
        sparsity=0.5,
        parameter_sparsity=0.25,
        num_parameters=2000,
    )


def farms_lr():
    """Layer-wise learning rates, as the newest callback records them."""
    return TrainReport(
        versions=VERSIONS,
        model="Qwen/Qwen3-0.6B",
        model_type="qwen3",
        num_parameters=596_049_920,
        num_trained=596_049_920,
        steps=1200,
        epochs=3.0,
        arguments={"learning_rate": 2e-05, "optim": "adamw_torch", "bf16": True, "seed": 42},
        metrics={"loss": 1.234, "eval_loss": 1.3456, "train_loss": 1.4},
        farms_lr=FarmsLRRecord(
            config=FarmsLRConfig(interval=0.25, map="sigmoid"),
            measurements=tuple(
                LRMeasurement(
                    step=step,
                    epoch=step / 400,
                    seconds=1.5,
                    blocks=tuple(
                        BlockFactor(
                            name=f"model.layers.{i}",
                            alpha=None if i == 3 else 2 + 0.1 * i + step / 10_000,
                            alpha_stderr=None if i == 3 else 0.01,
                            factor=0.7 + 0.2 * i,
                        )
                        for i in range(4)
                    ),
                )
                for step in (60, 360, 660, 960)
            ),
        ),
        base=BaseModelRecord(
            repo_id="Qwen/Qwen3-0.6B", license="apache-2.0", pipeline_tag="text-generation", files=("LICENSE",)
        ),
    )


def s2ft():
    """Selective training, from the files of a checkpoint alone."""
    names = [f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn.o_proj", "mlp.down_proj")]
    return TrainReport(
        versions=VERSIONS,
        model=None,
        model_type="llama",
        num_parameters=29_664,
        num_trained=2880,
        steps=8,
        epochs=0.5,
        metrics={"loss": 4.61},
        s2ft=S2FTRecord(
            config=S2FTConfig(budget=0.1, strategy="gradient", keep="largest", budget_allocation="farms"),
            layers=tuple(LayerSelection(name=name, num_selected=14 + i) for i, name in enumerate(names)),
        ),
    )


def both():
    """Both callbacks in one training; all alphas alike."""
    rates = farms_lr()
    assert rates.farms_lr is not None
    (first, *_) = rates.farms_lr.measurements
    still = replace(first, blocks=tuple(replace(block, factor=1.0) for block in first.blocks))
    return replace(
        rates, s2ft=s2ft().s2ft, num_trained=6_000_000, farms_lr=FarmsLRRecord(config=None, measurements=(still,))
    )


# name of the golden file -> report, repository, files of the model
EXAMPLES = {
    "demo": (demo, None, Checkpoint(architecture="LlamaForCausalLM", recipe="model: demo\n")),
    "by_chance": (by_chance, None, Checkpoint(architecture="LlamaForCausalLM")),
    "full": (full, "me/Llama-3.1-8B-farms-sparsegpt-60-Nof8", Checkpoint(chat=True, recipe=RECIPE)),
    "minimal": (minimal, None, Checkpoint()),
    "farms_lr": (farms_lr, "me/qwen3-tuned", Checkpoint(architecture="Qwen3ForCausalLM", chat=True)),
    "s2ft": (s2ft, None, Checkpoint()),
    "both": (both, "me/both", Checkpoint()),
}
