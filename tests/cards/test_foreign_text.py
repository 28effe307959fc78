"""Names and texts of others stay text: no HTML, no links, no templates, tables and YAML intact."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml
from cards import farms_lr, full, s2ft
from hf_farms_cards import render_card
from hf_farms_cards.markdown import code, escape, fenced, link
from hf_farms_cards.quick_start import Checkpoint
from markdown_it import MarkdownIt

from hf_farms.reports.training import LayerSelection, S2FTRecord

PLAIN = "plain"
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a](http://evil.example)",
    "[a](http://evil.example)",
    "![a](http://evil.example/a.png)",
    "[a]: http://evil.example",
    "<http://evil.example>",
    "{{ 7*7 }}{% raw %}",
    "one\ntwo\r\n\n# three",
    "a | b | c |",
    "`code` ``more`` ```",
    "**bold** _em_ ~~gone~~ $x$",
    "# heading",
    "- item",
    "1. item",
    "---\nmodel: evil\n---",
    "</details></code></pre>",
    "back\\slash\\",
    "&lt;b&gt; &amp; &#60;",
    "\u202eright\u200b to left\x00",
    "'quote\" : - [yaml, {a: b}] !!python/object",
    "=====",
    "> quoted",
    "out\n```\n# heading\n\n````\n<b>x</b>",
]


class Structure(HTMLParser):
    """Tags with their addresses, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(value for name, value in attrs if name in ("href", "src"))))
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


def page(text):
    """The body as GitHub and the Hub read it."""
    body = text.split("\n---\n", 1)[1]
    return Structure(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body))


def poisoned(text):
    """A report with this text wherever others decide what stands there."""
    report = full()
    block = replace(report.blocks[0], name=text)
    p = report.perplexity
    return replace(
        report,
        model=text,
        base=replace(
            report.base,
            repo_id=text,
            license="other",
            license_name=text,
            license_link=text,
            languages=(text,),
            pipeline_tag=text,
            files=(text.replace("/", ""),),
        ),
        blocks=(block, *report.blocks[1:]),
        notes=(text, "harmless"),
        tasks=(replace(report.tasks[0], task=text, metric=text), *report.tasks[1:]),
        perplexity=replace(p, dtype=text, config=replace(p.config, source=text, subset=text, split=text)),
        calibration=replace(report.calibration, config=replace(report.calibration.config, source=text)),
        versions={text: text, "python": "3"},
        command=text,
    )


def poisoned_training(text):
    report = farms_lr()
    rates = report.farms_lr
    lines = tuple(
        replace(line, blocks=(replace(line.blocks[0], name=text), *line.blocks[1:])) for line in rates.measurements
    )
    return replace(
        report,
        model=text,
        base=None,
        arguments={text: text},
        metrics={f"eval_{text}": 1.0},
        notes=(text,),
        farms_lr=replace(rates, measurements=lines),
        s2ft=S2FTRecord(config=s2ft().s2ft.config, layers=(LayerSelection(name=f"{text}.0.{text}", num_selected=3),)),
        versions={text: text},
    )


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("make", [poisoned, poisoned_training])
def test_a_page_has_the_same_structure_whatever_the_names_are(make, text):
    recipe = Checkpoint(recipe=f"model: {PLAIN}\n")
    plain = page(render_card(make(PLAIN), repo_id="me/x", checkpoint=recipe))
    card = render_card(make(text), repo_id="me/x", checkpoint=Checkpoint(recipe=f"model: {text}\n"))
    found = page(card)
    assert found.tags == plain.tags
    assert "49" not in re.sub(r"[\d.,]{3,}", "", found.text)
    header = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert "hf-farms" in header["tags"]
    assert not {"model", "evil"} & header.keys()


@pytest.mark.parametrize("text", HOSTILE)
def test_the_reader_sees_the_text_itself(text):
    found = page(render_card(poisoned(text), repo_id="me/x"))
    assert " ".join(text.replace("\u202e", " ").replace("\u200b", " ").replace("\x00", " ").split()) in found.text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("shape", ["{}\n", "- {}\n", "| a | b |\n|---|---|\n| {} | x |\n", "**{}**\n"])
def test_each_way_of_printing_keeps_the_markup_around_it(shape, text):
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for show in (escape, code):
        plain = Structure(markdown.render(shape.format(show(PLAIN))))
        assert Structure(markdown.render(shape.format(show(text)))).tags == plain.tags


@pytest.mark.parametrize("text", HOSTILE)
def test_a_block_of_code_ends_where_it_should(text):
    found = Structure(MarkdownIt("commonmark").render(f"{fenced(text)}\n\nafter"))
    assert found.tags == [("pre",), ("code",), ("p",)]


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "http://a.example", "https://a.example/) [x](y", "https://a b", "", "LICENSE", "data:x"],
)
def test_only_addresses_of_the_web_become_links(url):
    assert str(link("name", url)) == "name"
    assert str(link("name", "https://a.example/b?c=d")) == "[name](https://a.example/b?c=d)"


def test_bare_addresses_are_not_made_links_by_the_hub():
    assert str(escape("see http://evil.example and www.evil.example or a@evil.example")) == (
        r"see http\://evil.example and www\.evil.example or a\@evil.example"
    )
