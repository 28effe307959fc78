"""Escape and format values for Markdown: no HTML, links or templates from foreign text, and intact tables.

Templates escape every value with `escape`, unless a function here returned it as `Markup`.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escape_html

__all__ = ["code", "environment", "escape", "fenced", "link", "number", "percent", "with_error"]

# Markdown syntax of the Hub and GitHub: emphasis, code, links, tables, strike-through, formulas, and automatic links.
SPECIAL = re.compile(r"([\\`*_\[\]|~$]|(?<=\w)[:@](?=\S)|(?<=www)\.)", re.IGNORECASE)
# Syntax at the start of a line: heading, list, quotation, rule.
LEADING = re.compile(r"^([#+=-]|\d+(?=[.)](?:\s|$)))")
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def escape(value: Any) -> Markup:
    """Escape a value so that Markdown shows it as one line of plain text."""
    if isinstance(value, Markup):
        return value
    text = SPECIAL.sub(r"\\\1", one_line(value))
    leading = LEADING.match(text)
    if leading and leading[1].isdigit():
        text = f"{leading[1]}\\{text[leading.end() :]}"
    elif leading:
        text = f"\\{text}"
    return Markup(str(escape_html(text)).replace("&#39;", "'").replace("&#34;", '"'))


def code(value: Any) -> Markup:
    """Format a name as inline code. Only `|` needs escaping inside: it would end a table cell."""
    text = one_line(value).replace("|", "\\|") or " "
    fence = _fence(text, "`", 1)
    space = " " if text.startswith("`") or text.endswith("`") or text.endswith("\\") else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")


def fenced(value: Any, language: str = "") -> Markup:
    """Format text as a fenced code block; the fence is longer than any in the text."""
    text = INVISIBLE.sub("", str(value)).replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    fence = _fence(text, "`", 3)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def link(text: Any, url: str) -> Markup:
    """Format a link to an https URL; return only the text for anything else."""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.,~%/?=&#+:@-]*)?", url):
        return escape(text)
    return Markup(f"[{escape(text)}]({url})")


def number(value: float | None, digits: int = 2) -> Markup:
    """Format a number with `digits` decimals, or none from 10,000; None and NaN become a dash."""
    if value is None or math.isnan(value):
        return Markup("–")
    if math.isinf(value):
        return Markup("∞")
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}f}"
    return Markup(text.replace("-", "−"))


def percent(fraction: float | None, digits: int = 2) -> Markup:
    """Format a fraction in percent."""
    return Markup("–") if fraction is None else Markup(f"{100 * fraction:.{digits}f}%")


def with_error(value: float | None, stderr: float | None, digits: int = 3, *, sign: bool = False) -> Markup:
    """Format a number with its standard error, if any."""
    if value is None or not math.isfinite(value):
        return Markup("–")
    text = f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")
    return Markup(text if stderr is None else f"{text} ± {stderr:.{digits}f}")


def one_line(value: Any) -> str:
    """Remove line breaks and invisible characters."""
    return " ".join(INVISIBLE.sub(" ", str(value)).split())


@cache
def environment() -> Environment:
    """Return the Jinja environment with the templates of this package."""
    jinja = Environment(
        loader=PackageLoader(__package__ or "hf_farms_cards"),
        # A missing value must raise instead of leaving a gap in the card.
        undefined=StrictUndefined,
        # Values are escaped unless they are Markup. StrictUndefined must pass through to raise.
        finalize=lambda value: value if isinstance(value, StrictUndefined) else escape(value),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters |= {"code": code, "fenced": fenced, "number": number, "percent": percent, "link": link}
    jinja.globals |= {"with_error": with_error}
    return jinja


def _fence(text: str, mark: str, least: int) -> str:
    """Return at least `least` marks, and more than any run of marks in the text."""
    longest = max((len(run) for run in re.findall(f"{mark}+", text)), default=0)
    return mark * max(least, longest + 1)
