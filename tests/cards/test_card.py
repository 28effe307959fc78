import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cards import EXAMPLES, blocks, demo, farms_lr, full, minimal, s2ft
from hf_farms_cards import render_card
from hf_farms_cards.markdown import environment
from hf_farms_cards.prune_card import ENDS as ENDS_CLAUSES
from hf_farms_cards.quick_start import Checkpoint, task_of
from huggingface_hub import ModelCard
from jinja2 import UndefinedError

from hf_farms.config import ENDS, PruneConfig, S2FTConfig
from hf_farms.hub.base_model import read_base_model
from hf_farms.reports import BaseModelRecord, TaskRecord

GOLDEN = Path(__file__).parent / "golden"


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_rendered_card_is_the_one_that_was_read(name):
    report, repo_id, checkpoint = EXAMPLES[name]
    text = render_card(report(), repo_id=repo_id, checkpoint=checkpoint)
    assert text == (GOLDEN / f"{name}.md").read_text(encoding="utf-8"), (
        "python tests/support/update_cards.py, and read it"
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_card_has_a_hole_or_a_number_that_is_none(name):
    report, repo_id, checkpoint = EXAMPLES[name]
    text = render_card(report(), repo_id=repo_id, checkpoint=checkpoint)
    for words in ("More Information Needed", "None", "nan", "inf", "{{", "{%", "\n\n\n", "Markup", "Undefined"):
        assert words not in text.replace("model-index", ""), words


def test_the_header_is_what_the_hub_reads():
    found = header(render_card(full(), repo_id="me/Llama-pruned"))
    assert found["base_model"] == "meta-llama/Llama-3.1-8B"
    assert found["base_model_relation"] == "finetune"
    assert (found["license"], found["language"]) == ("llama3.1", ["en", "de", "fr"])
    assert {"hf-farms", "pruned", "sparse", "farms", "sparsegpt"} <= set(found["tags"])
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    (index,) = found["model-index"]
    assert index["name"] == "Llama-pruned"
    values = [metric["value"] for result in index["results"] for metric in result["metrics"]]
    assert values == [11.87, 0.7012, 0.731, 5.2]
    assert all(type(value) is float for value in values)
    assert index["results"][0]["dataset"]["config"] == "wikitext-2-raw-v1"


def test_a_license_of_its_own_is_inherited_with_name_and_link():
    base = BaseModelRecord(
        repo_id="a/b", license="other", license_name="b-license", license_link="https://a.example/license"
    )
    text = render_card(replace(full(), base=base))
    found = header(text)
    assert (found["license"], found["license_name"]) == ("other", "b-license")
    assert found["license_link"] == "https://a.example/license"
    assert "[b-license](https://a.example/license)" in section(text, "License")
    assert "Statement of changes: weights of the linear layers were set to zero" in text
    assert "Built with" not in text


@pytest.mark.parametrize(
    ("license", "display", "notice"),
    [
        ("llama2", None, "LLAMA 2 Community License"),
        ("llama3", "Built with Meta Llama 3", "Meta Llama 3 Community License"),
        ("llama3.2", "Built with Llama", "Llama 3.2 Community License"),
        ("gemma", None, "Gemma Terms of Use"),
        ("mit", None, None),
    ],
)
def test_the_duties_of_the_license_are_met(license, display, notice):
    text = render_card(replace(full(), base=BaseModelRecord(repo_id="a/b", license=license, files=("LICENSE",))))
    assert (f"\n**{display}**\n" in text) == bool(display)
    assert ("Built with" in text) == bool(display)
    quoted = [line for line in section(text, "License").splitlines() if line.startswith("> ")]
    assert len(quoted) == bool(notice)
    assert notice is None or notice in quoted[0]
    assert ("`LICENSE`, `NOTICE`" in text) == bool(notice)


def test_only_license_files_that_lie_there_are_named():
    text = render_card(full(), checkpoint=Checkpoint(files=frozenset({"LICENSE"})))
    assert "License files in this repository: `LICENSE`.\n" in text
    assert "License files" not in render_card(farms_lr())


def test_a_card_that_nobody_could_read_is_not_said_to_name_no_license():
    unread = BaseModelRecord(repo_id="a/b", card_read=False)
    text = section(render_card(replace(full(), base=unread)), "License")
    assert "The model card of [a/b](https://huggingface.co/a/b) was not available when this card was written." in text
    assert "see [its page](https://huggingface.co/a/b)." in text
    assert "names no license" not in text
    text = section(render_card(replace(full(), base=replace(unread, card_read=True))), "License")
    assert "The model card of [a/b](https://huggingface.co/a/b) names no license" in text
    text = section(render_card(replace(full(), base=replace(unread, license="mit"))), "License")
    assert "[MIT License]" in text


def test_the_license_of_a_folder_is_passed_on_and_the_folder_is_no_base_model_on_the_hub(tmp_path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: llama3\nlanguage: de\n---\n")
    (tmp_path / "dense" / "LICENSE").write_text("terms")
    report = replace(full(), model=str(tmp_path / "dense"), base=read_base_model(tmp_path / "dense"))
    text = render_card(report)
    found = header(text)
    assert (found["license"], found["language"]) == ("llama3", ["de"])
    assert not {"base_model", "base_model_relation"} & set(found)
    assert "\n**Built with Meta Llama 3**\n" in text
    said = section(text, "License")
    link = "[Meta Llama 3 Community License](https://www.llama.com/llama3/license/)"
    assert f"The license of `dense` also applies to this model: {link}." in said
    assert "License files in this repository: `LICENSE`, `NOTICE`." in said
    assert "huggingface.co/dense" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_that_yaml_has_no_word_for_stay_out(value):
    report = full()
    p = replace(report.perplexity, pruned=value, uniform_nll_difference=-value, nll_difference=value)
    text = render_card(replace(report, perplexity=p, tasks=()))
    assert "model-index" not in text
    assert "the dense perplexity is" not in text
    assert "| – |" in text
    assert not {"inf", "nan"} & set(text.replace("*", " ").split())


def test_what_was_not_measured_is_not_claimed_and_what_measures_it_is_named():
    text = render_card(minimal())
    assert "Perplexity was not measured; `hf-farms prune --evaluation` measures it." in text
    assert "Spectra were not measured." in text
    assert "alpha" not in section(text, "Blocks")
    assert "No calibration data" in text
    assert not {"2306.11695", "2410.10912", "2301.00774"} & set(text.replace("}", " ").replace(":", " ").split())
    report = demo()
    without = replace(report.perplexity, uniform=None, uniform_nll_difference=None, uniform_nll_difference_stderr=None)
    text = render_card(replace(report, perplexity=without))
    assert "The uniform baseline was not measured; `hf-farms prune --baseline` measures it." in text
    assert "| uniform" not in text
    text = render_card(replace(report, perplexity=without, config=PruneConfig(allocation="uniform")))
    assert "--baseline" not in text


def test_a_single_window_has_no_error():
    report = demo()
    text = render_card(replace(report, perplexity=replace(report.perplexity, nll_difference_stderr=None)))
    assert "a single window gives no standard error" in text
    assert "| dense | 54.57 | +0.100 |" in text


@pytest.mark.parametrize(
    ("difference", "error", "this", "uniform"),
    [
        (-0.084, 0.003, "**11.87**", "12.91"),
        (0.084, 0.003, "11.87", "**12.91**"),
        (-0.084, 0.05, "11.87", "12.91"),
        (-0.084, None, "11.87", "12.91"),
    ],
)
def test_bold_only_beyond_two_standard_errors(difference, error, this, uniform):
    p = replace(full().perplexity, uniform_nll_difference=difference, uniform_nll_difference_stderr=error)
    text = render_card(replace(full(), perplexity=p))
    assert f"| this model | {this} |" in text
    assert f"every block | {uniform} |" in text
    assert ("Bold: better" in text) == ("**" in this + uniform)


@pytest.mark.parametrize(
    ("metric", "value", "error", "shown"),
    [
        ("acc", 0.7, 0.01, "| **0.8000 ± 0.0100** | 0.7000 ± 0.0100 |"),
        ("acc", 0.9, 0.01, "| 0.8000 ± 0.0100 | **0.9000 ± 0.0100** |"),
        ("word_perplexity", 0.7, 0.01, "| 0.8000 ± 0.0100 | **0.7000 ± 0.0100** |"),
        ("acc", 0.7, 0.06, "| 0.8000 ± 0.0100 | 0.7000 ± 0.0100 |"),
        ("acc", 0.78, None, "| 0.8000 ± 0.0100 | 0.7800 ± 0.0100 |"),
        ("acc", 0.7, None, "| **0.8000 ± 0.0100** | 0.7000 ± 0.0100 |"),
    ],
)
def test_tasks_are_bold_beyond_two_errors_of_the_difference(metric, value, error, shown):
    task = TaskRecord(
        task="t",
        metric=metric,
        value=value,
        stderr=0.01,
        num_fewshot=0,
        num_samples=100,
        version="1",
        dense=0.8,
        dense_stderr=0.01,
        difference_stderr=error,
    )
    assert shown in render_card(replace(full(), tasks=(task,)))


@pytest.mark.parametrize("count", [2, 30])
def test_the_table_of_blocks_is_folded(count):
    text = section(render_card(replace(demo(), blocks=blocks([0.5] * count))), "Blocks")
    folded = text.partition("<details>")[2].partition("</details>")[0]
    assert f"<summary>Table of all {count} blocks</summary>\n\n| block |" in folded
    assert f"`model.layers.{count - 1}`" in folded


@pytest.mark.parametrize("model", ["demo", "/a/folder", "./folder/x", "../x", "folder", "C:\\models\\x", "a/b/c"])
def test_a_local_model_is_no_base_model(model):
    assert ModelCard(render_card(replace(demo(), model=model))).data.base_model is None


def test_a_folder_that_looks_like_a_hub_id_is_no_base_model(tmp_path, monkeypatch):
    (tmp_path / "me" / "model").mkdir(parents=True)
    assert header(render_card(replace(demo(), model="me/model")))["base_model"] == "me/model"
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in header(render_card(replace(demo(), model="me/model")))


def test_nobodys_folders_are_published():
    report = replace(minimal(), perplexity=demo().perplexity)
    report = replace(
        report,
        perplexity=replace(report.perplexity, config=replace(report.perplexity.config, source="/home/x/y.txt")),
    )
    text = render_card(report)
    assert "/home" not in text
    assert "y.txt" in text


@pytest.mark.parametrize("template", ["prune.md.j2", "train.md.j2", "farms_lr.md.j2"])
def test_a_template_with_a_missing_value_fails(template):
    with pytest.raises(UndefinedError, match="is undefined"):
        environment().get_template(template).render(report=demo())


@pytest.mark.parametrize(
    ("model_type", "architecture", "auto_class"),
    [
        ("llama", None, "AutoModelForCausalLM"),
        ("bert", None, "AutoModelForMaskedLM"),
        ("bert", "BertForSequenceClassification", "AutoModelForSequenceClassification"),
        ("vit", None, "AutoModelForImageClassification"),
        ("t5", None, "AutoModelForSeq2SeqLM"),
        ("t5", "T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("gemma3", "Gemma3ForConditionalGeneration", "AutoModelForImageTextToText"),
        ("gpt2", "GPT2LMHeadModel", "AutoModelForCausalLM"),
        ("mystery", "MysteryModel", "AutoModel"),
    ],
)
def test_the_class_follows_the_model(model_type, architecture, auto_class):
    import transformers

    assert task_of(model_type, architecture).auto_class == auto_class
    assert hasattr(transformers, auto_class)
    text = render_card(replace(demo(), model_type=model_type), checkpoint=Checkpoint(architecture=architecture))
    assert f"{auto_class}.from_pretrained" in text or "pipeline(" in text


def test_trained_models_say_what_was_trained():
    text = render_card(s2ft())
    assert "2,880 of 29,664 parameters (9.71%) were trained" in text
    assert "| `model.layers.2` | 19 | 18 |" in text
    assert "The base model was not recorded." in text
    assert {"hf-farms", "s2ft"} <= set(header(text)["tags"])
    text = render_card(farms_lr(), repo_id="me/x")
    assert "factors on the learning rate from 0.700 to 1.300" in text
    assert 'FarmsLRConfig(map="sigmoid", interval=0.25)' in text
    assert header(text)["base_model"] == "Qwen/Qwen3-0.6B"
    assert header(text)["model-index"][0]["results"][0]["metrics"][0] == {
        "type": "loss",
        "value": 1.3456,
        "name": "loss",
    }


def test_a_small_budget_is_not_said_to_train_what_it_left_out():
    report = s2ft()
    record = replace(report.s2ft, config=S2FTConfig(), layers=report.s2ft.layers[1::2])
    text = render_card(replace(report, s2ft=record))
    assert "fine-tuned in selected feed-forward channels**" in text
    assert ": feed-forward channels are selected" in text
    assert "Trained layers: `mlp.down_proj`." in text
    assert "heads" not in text
    heads = render_card(replace(report, s2ft=replace(record, layers=report.s2ft.layers[::2])))
    assert "fine-tuned in selected attention heads**" in heads
    assert "Trained layers: `self_attn.o_proj`." in heads


def test_a_limit_of_channels_is_named():
    report = s2ft()
    assert "channels of each weight" not in render_card(report)
    config = S2FTConfig(budget=0.1, max_channels=1256)
    text = render_card(replace(report, s2ft=replace(report.s2ft, config=config)))
    assert "Budget: 10.00% of the parameters; at most 1,256 channels of each weight." in text
    assert "max_channels=1256" in text


def test_farms_is_cited_only_where_alphas_were_used():
    report = s2ft()
    text = render_card(report)
    assert "farms" in header(text)["tags"]
    assert "2506.06280" in text
    text = render_card(replace(report, s2ft=replace(report.s2ft, config=S2FTConfig())))
    assert "farms" not in header(text)["tags"]
    assert "2506.06280" not in text
    assert "2412.06289" in section(text, "Citation")


def test_ends_that_are_not_as_measured_are_named_where_they_count():
    report = full()
    assert report.config.allocation == "farms"
    for ends, clause in (
        ("measured", None),
        ("first-capped", "the alpha of the first block counts as at most the lowest of the others."),
        ("first-lowest", "the first block counts with the lowest alpha of the others."),
        ("apart", "the first and the last block take no part in this and have the total sparsity as their target."),
    ):
        text = render_card(replace(report, config=replace(report.config, ends=ends)))
        method = section(text, "How it was made")
        assert ("As alphas of different positions compare badly, " in method) == (clause is not None)
        assert clause is None or f" As alphas of different positions compare badly, {clause}\n" in method
    even = replace(report, config=replace(report.config, ends="apart"), blocks=blocks([0.5] * 3))
    uniform = replace(report, config=replace(report.config, ends="apart", allocation="uniform"))
    assert "compare badly" not in render_card(even) + render_card(uniform)
    assert set(ENDS_CLAUSES) == set(ENDS) - {"measured"}


@pytest.mark.parametrize(
    ("options", "num_blocks", "by_chance"),
    [
        ({}, 6, True),
        ({"ends": "apart"}, 4, True),
        ({"ends": "apart"}, 3, False),
        ({"ends": "first-apart"}, 2, False),
        ({}, 1, False),
        ({"spread": 0.0}, 6, False),
        ({"sparsity": 0.0}, 6, False),
        ({"pattern": "N:8"}, 6, False),
        ({"allocation": "uniform"}, 6, False),
    ],
)
def test_equal_sparsities_are_put_down_to_chance_only_where_alphas_could_have_made_them_differ(
    options, num_blocks, by_chance
):
    report = EXAMPLES["by_chance"][0]()
    report = replace(report, config=replace(report.config, **options), blocks=blocks([0.5] * num_blocks))
    method = section(render_card(replace(report, notes=())), "How it was made")
    assert ("the alphas differ by no more than chance" in method) == by_chance
    assert ("Every block has the same sparsity." in method) == (not by_chance)


def test_factors_that_stayed_at_1_are_no_layer_wise_learning_rates():
    report = farms_lr()
    lines = report.farms_lr.measurements
    still = tuple(replace(line, blocks=tuple(replace(b, factor=1.0) for b in line.blocks)) for line in lines)
    text = render_card(replace(report, farms_lr=replace(report.farms_lr, measurements=still)))
    assert "fine-tuned**: layer-wise learning rates were enabled, but all factors were 1.\n" in text
    # They moved, and came back.
    text = render_card(replace(report, farms_lr=replace(report.farms_lr, measurements=(lines[0], *still[1:]))))
    assert "fine-tuned with layer-wise learning rates**.\n" in text


def test_a_refined_card_says_how_much_the_error_fell():
    report = full()
    config = replace(report.config, refine="swaps")
    values = iter([0.125, 0.4, 0.25] + [0.25] * 100)
    refined = tuple(
        replace(b, layers=tuple(replace(x, error_reduction=next(values)) for x in b.layers)) for b in report.blocks
    )
    text = section(render_card(replace(report, config=config, blocks=refined)), "How it was made")
    assert "refinement `swaps`, allocation" in text
    assert "squared output error of the layer on the calibration data. The error fell by 12.5% to 40%, in" in text
    assert "in the median layer by 25%." in text
    assert "swaps" not in section(render_card(report), "How it was made")
