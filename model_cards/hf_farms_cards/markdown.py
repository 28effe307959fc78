"""Text of others inside Markdown, so that it stays text: no HTML, no links, no templates, tables intact.

Everything that a template prints goes through `escape`, unless a function here has made it `Markup`.
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

# Markup of Markdown as the Hub and GitHub read it: emphasis, code, links, tables, strike-through, formulas; and what
# makes a link of a bare address.
SPECIAL = re.compile(r"([\\`*_\[\]|~$]|(?<=\w)[:@](?=\S)|(?<=www)\.)", re.IGNORECASE)
# At the start of a line these begin a heading, a list, a quotation, a rule.
LEADING = re.compile(r"^([#+=-]|\d+(?=[.)](?:\s|$)))")
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def escape(value: Any) -> Markup:
    """One line of plain text that Markdown shows as it is."""
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
    """A name in monospace. Inside, nothing is markup but `|`, which would end the cell of a table."""
    text = one_line(value).replace("|", "\\|") or " "
    fence = _longer_than_inside(text, "`", 1)
    space = " " if text.startswith("`") or text.endswith("`") or text.endswith("\\") else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")


def fenced(value: Any, language: str = "") -> Markup:
    """A block of code, whatever is in it."""
    text = INVISIBLE.sub("", str(value)).replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
    fence = _longer_than_inside(text, "`", 3)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def link(text: Any, url: str) -> Markup:
    """A link to an address on the web; only the text, where the address is no such thing."""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.,~%/?=&#+:@-]*)?", url):
        return escape(text)
    return Markup(f"[{escape(text)}]({url})")


def number(value: float | None, digits: int = 2) -> Markup:
    """A number with so many digits behind the point; without them where it is large. A dash for none."""
    if value is None or math.isnan(value):
        return Markup("–")
    if math.isinf(value):
        return Markup("∞")
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}f}"
    return Markup(text.replace("-", "−"))


def percent(fraction: float | None, digits: int = 2) -> Markup:
    """A fraction in percent."""
    return Markup("–") if fraction is None else Markup(f"{100 * fraction:.{digits}f}%")


def with_error(value: float | None, stderr: float | None, digits: int = 3, *, sign: bool = False) -> Markup:
    """A number and its standard error, if it has one."""
    if value is None or not math.isfinite(value):
        return Markup("–")
    text = f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")
    return Markup(text if stderr is None else f"{text} ± {stderr:.{digits}f}")


def one_line(value: Any) -> str:
    """Text without line breaks and invisible characters."""
    return " ".join(INVISIBLE.sub(" ", str(value)).split())


@cache
def environment() -> Environment:
    """The templates of this package."""
    made = Environment(
        loader=PackageLoader(__package__ or "hf_farms_cards"),
        # A card with a hole in it must fail here and not on the Hub.
        undefined=StrictUndefined,
        # What a template prints is text, unless something here says that it is markup. StrictUndefined comes by too.
        finalize=lambda value: value if isinstance(value, StrictUndefined) else escape(value),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"code": code, "fenced": fenced, "number": number, "percent": percent, "link": link}
    made.globals |= {"with_error": with_error}
    return made


def _longer_than_inside(text: str, mark: str, least: int) -> str:
    longest = max((len(run) for run in re.findall(f"{mark}+", text)), default=0)
    return mark * max(least, longest + 1)
