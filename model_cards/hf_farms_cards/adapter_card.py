"""Render the card of an S²FT adapter from its description."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from hf_farms.config import S2FTConfig
from hf_farms.files.dataclass_parsing import parse_dataclass
from hf_farms.files.documents import Document
from hf_farms.registries import STRATEGIES
from hf_farms.reports import BaseModelRecord
from hf_farms.reports.adapters import AdapterSummary
from hf_farms_cards.licences import license_of
from hf_farms_cards.markdown import environment
from hf_farms_cards.metadata import card_data, hub_id
from hf_farms_cards.prune_card import base_text
from hf_farms_cards.quick_start import as_call

__all__ = ["render_adapter_card"]

BARE_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

QUICK_START = """\
import torch
from hf_farms import S2FTAdapter
from transformers import AutoModelForCausalLM

adapter = S2FTAdapter.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained({base}, dtype=torch.{dtype})
adapter.merge(model)
# adapter.unmerge(model) restores the base model, bit for bit"""


def render_adapter_card(
    description: Mapping[str, Any],
    *,
    repo_id: str,
    base: BaseModelRecord | None = None,
    files: Collection[str] | None = None,
) -> str:
    """Render the model card of an adapter for the Hub.

    Args:
        description: content of `s2ft_config.json`.
        repo_id: repository of the adapter.
        base: record of the base model, for its license; None: not known.
        files: names of the files in the folder of the card; None to assume that all license files exist.

    Returns:
        Markdown with a YAML header.
    """
    from huggingface_hub import ModelCard

    model = description["base_model"]
    base_id = hub_id(model, base) or _bare_id(base)
    data = card_data(
        name=repo_id,
        base=base,
        base_id=base_id,
        tags=["s2ft"],
        pipeline_tag=(base.pipeline_tag if base else None) or "text-generation",
        results=[],
    )
    data["library_name"] = "hf-farms"
    data["base_model_relation"] = "adapter" if base_id else None
    summary = AdapterSummary.from_description(description)
    config = description["selection"]
    config = None if config is None else parse_dataclass(Document(config), S2FTConfig)
    revision = f', revision="{description["base_revision"]}"' if base_id and description["base_revision"] else ""
    values = {
        "title": repo_id.rsplit("/", 1)[-1],
        "base": base_text(model, base_id) if model else "a model",
        "base_id": base_id,
        "known": model is not None,
        "license": license_of(base, files) if base else None,
        "summary": summary,
        "quick_start": QUICK_START.format(
            name=repo_id, base=f'"{base_id or "BASE_MODEL"}"{revision}', dtype=description["dtype"]
        ),
        "config": config,
        "strategy": STRATEGIES[config.strategy].describe(config) if config else None,
        "snippet": f"from hf_farms import S2FTCallback, S2FTConfig\n\ncallbacks = [S2FTCallback({as_call(config)})]"
        if config
        else None,
        "change": "the channels in this repository replace those of the base model; all other weights are unchanged.",
        "versions": description["versions"],
    }
    body = environment().get_template("adapter.md.j2").render(**values)
    text = re.sub(r"\n{3,}", "\n\n", body)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.rstrip()}\n"))


def _bare_id(base: BaseModelRecord | None) -> str | None:
    """Return the id of a base model without a namespace, as "gpt2": only a record of the Hub tells it from a folder."""
    return base.repo_id if base is not None and not base.local and BARE_ID.fullmatch(base.repo_id) else None
