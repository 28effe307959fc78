"""The class of all commands: `--help` without boxes, and the options that stand on the command line."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from hf_farms.config.effects import given_fields
from hf_farms_cli.messages import FIELDS, names_here, options_by_name
from hf_farms_cli.options import given

__all__ = ["Command"]


class Command(TyperCommand):
    """A command whose help has a section for each panel of its options.

    typer draws panels with rich only. Help without boxes is read by programs too, and starts without rich.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the library warns of options without an effect only if they stand on the command line."""
        options = set(given(ctx, names=[str(parameter.name) for parameter in self.params]))
        with given_fields({field for field, option in FIELDS.items() if option in options}):
            return self._with_names(ctx)

    def _with_names(self, ctx: Any) -> Any:
        """Run the command; errors name its options. Switches have no value that could be wrong."""
        taking = [p for p in self.params if p.param_type_name == "option" and not getattr(p, "is_flag", False)]
        token = names_here.set(options_by_name({str(p.name): max(p.opts, key=len) for p in taking}))
        try:
            return super().invoke(ctx)
        finally:
            names_here.reset(token)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then a section for each panel, in the order of the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            title = "Arguments" if param.param_type_name == "argument" else getattr(param, "rich_help_panel", None)
            if title is None:
                # --help is the last parameter, and the last section has options of its kind.
                title = next(reversed(sections), "Options") if param.is_eager else "Options"
            if record is not None:
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
