"""The two writers: all that a report holds is told, and no text of it becomes markup."""

from __future__ import annotations

import html
import html.parser
import re

import pytest

from pipeline.reporting.content import Chapter, Fact, Figure, Report, Table, Tinted
from pipeline.reporting.html_page import html_page
from pipeline.reporting.markdown_page import markdown_page
from tests.reporting.conftest import HOSTILE

_ALLOWED = """html head meta link title style body main header footer section nav a h1 h2 p dl dt dd div table caption
thead tbody tr th td figure figcaption img b span details summary pre"""
_ATTRIBUTES = "lang charset name content http-equiv rel href class id aria-labelledby aria-label scope src alt title"
_UNCLOSED = {"meta", "link", "img"}


class Elements(html.parser.HTMLParser):
    """Every element is closed where it must be, and its attributes are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in _UNCLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    assert not elements.open
    return elements


@pytest.fixture
def hostile(tmp_path) -> Report:
    """The same text wherever a text can stand."""
    picture = tmp_path / "it's <b>.png"
    picture.write_bytes(b"\x89PNG")
    table = Table(HOSTILE, (HOSTILE, HOSTILE), [(HOSTILE, HOSTILE), ("a\nb", "`")], marked=frozenset({0}))
    chapter = Chapter(
        title=HOSTILE,
        told=[HOSTILE],
        facts=[Fact(HOSTILE, HOSTILE)],
        tables=[table],
        folded=[table],
        figures=[Figure(picture, HOSTILE, HOSTILE)],
        tinted=Tinted([(HOSTILE, 1), ("```\n</p>", 3)], 1, 3),
        verbatim=(HOSTILE, f"```\n{HOSTILE}\n</pre>"),
        files=[(picture, HOSTILE)],
    )
    return Report(HOSTILE, HOSTILE, "ab" * 32, [Fact(HOSTILE, HOSTILE, HOSTILE)], [chapter])


def test_no_text_becomes_an_element_or_an_attribute(hostile):
    elements = read(html_page(hostile))
    assert {tag for tag, _ in elements.found} <= set(_ALLOWED.split())
    assert {name for _, attributes in elements.found for name in attributes} <= set(_ATTRIBUTES.split())
    sources = [attributes["src"] for tag, attributes in elements.found if tag == "img"]
    assert len(sources) == 1
    assert str(sources[0]).startswith("data:image/png;base64,")
    assert "".join(elements.texts).count("<script>alert(1)</script>") >= 10, "it is told, as a text"


def test_nothing_of_a_page_comes_from_elsewhere(hostile):
    page = html_page(hostile)
    places = [
        value for _, attributes in read(page).found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(str(place).startswith(("data:", "#")) for place in places)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_markdown_keeps_the_form_of_its_tables(hostile, tmp_path):
    text = markdown_page(hostile, tmp_path)
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"<(?!!-- adaponder)", outside), "no element"
    for line in outside.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4), line
    assert "**bold**" not in outside
    assert "](it%27s%20%3Cb%3E.png)" in outside, "the figure's place"


def test_verbatim_text_cannot_end_its_own_fence(hostile, tmp_path):
    text = markdown_page(hostile, tmp_path)
    fences = re.findall(r"^(`{3,})text$", text, flags=re.MULTILINE)
    assert fences == ["```", "````", "````"], "the second and third hold three backticks"
    for fence in fences:
        assert re.search(rf"^{fence}$", text, flags=re.MULTILINE)


def test_depths_stand_in_both(tmp_path):
    chapter = Chapter("Text", tinted=Tinted([("one", 1), (" two", 2), (" three", 3)], 1, 3))
    report = Report("a", "b", "c", [], [chapter])
    page = html_page(report)
    assert '<b class="d1" title="1 pass">one</b><span class="d2" title="2 passes"> two</span>' in page
    assert ".d3{background:" in page
    text = markdown_page(report, tmp_path)
    assert "one₁" in text
    assert " two₂ three₃" in text


def test_the_best_row_is_marked_and_parts_are_divided(tmp_path):
    table = Table("t", ("a", "b"), [("x", "1"), ("y", "2")], frozenset({1}), frozenset({0}), frozenset({1}))
    page = html_page(Report("a", "b", "c", [], [Chapter("d", tables=[table])]))
    assert '<tr class="end"><td>x</td><td class="n">1</td></tr>' in page
    assert '<tr class="marked"><td>y</td>' in page
    text = markdown_page(Report("a", "b", "c", [], [Chapter("d", tables=[table])]), tmp_path)
    assert "| --- | ---: |" in text
    assert "| **y** | **2** |" in text
