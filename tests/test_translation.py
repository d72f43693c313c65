"""The Chinese edition says what the English one says: every block has its translation, none is older than its original."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("babel")
pytest.importorskip("jupytext")

from tutorials import checks
from tutorials.translation import blocks, gathering, labels, made, parity, rendered, sentences
from tutorials.translation.sentences import Catalog

ROOT = Path(__file__).parents[1]
DOCUMENTS = {document.name: document for document in blocks.documents()}


# ---- The edition itself -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_block_has_a_translation_that_is_not_older_than_it(name):
    behind = [
        f"{pair.state}: {(pair.original or pair.translation)[:80]!r}" for pair in blocks.read(DOCUMENTS[name]) if pair.state != "translated"
    ]
    assert behind == [], "python -m tutorials.translation lists what to do"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_formulae_code_links_and_numbers_are_those_of_the_original(name):
    pairs = [pair for pair in blocks.read(DOCUMENTS[name]) if pair.state == "translated"]
    assert {blocks.digest(pair.original): parity.differences(pair) for pair in pairs if parity.differences(pair)} == {}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_terms_are_those_of_the_glossary(name):
    pairs = [pair for pair in blocks.read(DOCUMENTS[name]) if pair.state == "translated"]
    wrong = {blocks.digest(pair.original): parity.misnamed(pair, name) for pair in pairs}
    assert {key: found for key, found in wrong.items() if found} == {}


def test_the_words_that_are_held_against_the_glossary_are_its_own():
    known = {word for words in parity.glossary().values() for word in words}
    assert set(parity.AVOIDED) | set(parity.TERMS.values()) <= known


@pytest.mark.parametrize("area", gathering.AREAS)
def test_every_short_sentence_has_a_translation_with_its_numbers(area):
    assert gathering.missing(area) == [], "python -m tutorials.translation --strings"
    assert sentences.faults()[area] == []


# ---- Blocks -------------------------------------------------------------------------------------------------------------------


def states(english, translated):
    return [(pair.original, pair.translation, pair.state) for pair in blocks.pairs(english, [(blocks.digest(a), b) for a, b in translated])]


def test_a_changed_original_makes_its_translation_outdated_and_a_new_one_is_missing():
    translated = [("one", "一"), ("two", "二"), ("three", "三")]
    assert [state for *_, state in states(["one", "two", "three"], translated)] == ["translated"] * 3
    assert states(["one", "two!", "three"], translated)[1] == ("two!", "二", "outdated")
    assert states(["zero", "one", "two", "three"], translated)[0] == ("zero", None, "missing")
    assert states(["one", "three"], translated)[1] == (None, "二", "orphaned")
    assert [b for _, b, _ in states(["three", "one", "two"], translated)] == ["三", "一", "二"]


def test_a_cell_of_a_chapter_that_is_changed_is_noticed():
    document = DOCUMENTS["05_decomposition"]
    cells = blocks.originals(document)
    translated = [(blocks.digest(cell), "译文") for cell in cells]
    assert {pair.state for pair in blocks.pairs(cells, translated)} == {"translated"}
    cells[3] += " One more sentence."
    assert [pair.state for pair in blocks.pairs(cells, translated)].count("outdated") == 1


def test_a_page_is_cut_before_its_headings_and_not_within_code():
    text = "---\nhide: toc\n---\n\n# T\n\n## A\n\n```\n## no\n```\n\n## B\nb"
    assert blocks.sections(text) == ["---\nhide: toc\n---\n\n# T", "## A\n\n```\n## no\n```", "## B\nb"]


@pytest.mark.parametrize("text", ["above\n<!-- cell 0123456789ab -->\nx", 2 * "<!-- cell 0123456789ab -->\nx\n"])
def test_a_file_of_translations_that_is_wrong_is_refused(text):
    with pytest.raises(ValueError, match="marker"):
        blocks.blocks(text)


@pytest.mark.parametrize(
    ("original", "translation", "said"),
    [
        ("a $x$ b", "甲 $y$ 乙", "lacks formulae: x"),
        ("$$ a = 1 $$", "没有", "lacks displayed formulae: a = 1"),
        ("of `x` and `x`", "`x`", "lacks code spans: x"),
        ("[a](b.md#c)", "[甲](b.md)", "lacks targets of links: b.md#c"),
        ("in 16 bits, int8", "用 8 位，int8", "lacks numbers: 16"),
        ("```python\nx = 1\n```", "```python\nx = 2\n```", "lacks fenced code: x = 1"),
        ("{{ error }}", "误差", "lacks placeholders: {{ error"),
    ],
)
def test_what_a_translation_has_lost_is_named(original, translation, said):
    assert said in parity.differences(blocks.Pair(original, translation))
    assert parity.differences(blocks.Pair(original, original)) == []


def test_a_word_that_the_glossary_does_not_use_is_named():
    assert parity.misnamed(blocks.Pair("an outlier", "一个异常值"), "x") == ["异常值: write 离群值", "outlier: 离群 is missing"]
    assert parity.misnamed(blocks.Pair("an outlier", "一个离群值"), "x") == []


# ---- What commands write ------------------------------------------------------------------------------------------------------

MADE = """# A row of W

Error at 3: see `x`.

![a row of W](a.png){ .figure }

| a row of W | 5 |
| --- | ---: |
| [1](#a) |  |

- a row of W
- another

```text
a row of W
```
<!-- a row of W -->
"""


def test_sentences_of_a_made_text_are_its_headings_cells_items_descriptions_and_paragraphs():
    found = [MADE[start:end].strip() for start, end in made.spans(MADE)]
    assert [text for text in found if sentences.WORD.search(text)] == [
        "A row of W", "Error at 3: see `x`.", "a row of W", "a row of W", "a row of W", "another",
    ]  # fmt: skip


def test_a_made_text_is_translated_where_the_catalog_knows_it_and_nowhere_else():
    said = made.in_chinese(MADE, Catalog({"a row of W": "W 的一行", "Error at #: see `x`.": "# 处的误差：见 `x`。"}))
    assert said.count("W 的一行") == 3
    assert "# 处的误差" not in said
    assert "3 处的误差：见 `x`。" in said
    assert "![W 的一行](a.png){ .figure }" in said
    assert said.endswith("```text\na row of W\n```\n<!-- a row of W -->\n")
    assert made.in_chinese(MADE, Catalog({})) == MADE


def test_made_parts_of_a_page_do_not_make_its_translation_outdated_and_come_back_into_it():
    page = "# T\n\n## A\n\n<!-- begin: made by x -->\n{}<!-- end -->\n\nb\n"
    before, after = page.format("\n## 1\n\none\n"), page.format("\n## 2\n\ntwo\n")
    assert blocks.sections(before) == blocks.sections(after) == ["# T", "## A\n\n<!-- begin: made by x -->\n<!-- end -->\n\nb"]
    assert made.parts(after) == ["\n## 2\n\ntwo\n"]
    assert made.filled(made.without(before), made.parts(after)) == after


# ---- Sentences ----------------------------------------------------------------------------------------------------------------

CATALOG = Catalog(
    {
        "error at threshold #": "阈值 # 时的误差",
        "#-bit work at threshold #": "阈值 {2} 时 {1} 位的计算量",
        "off by # of #, # left": "差 {2} 中的 #，剩 #",
        "You said {guess}. Computed: {shown}.": "你说 {guess}。算出来是 {shown}。",
        "a row of W": "W 的一行",
        "{first} The last step.": "{first} 最后一步。",
        "Step # of #: {rest}": "第 # 步，共 # 步：{rest}",
        "Hint: {hint}": "提示：{hint}",
        "no label": "",
        "See [it](#there).": "见[它](#there)。",
        "See [the {what}]({link}).": "见[{what}]({link})。",
    }
)
SAID = {
    "error at threshold 6.5": "阈值 6.5 时的误差",
    "16-bit work at threshold 1": "阈值 1 时 16 位的计算量",
    "off by 1 of 2, -3 left": "差 2 中的 1，剩 -3",
    "You said 0,5. Computed: a row of W.": "你说 0,5。算出来是 W 的一行。",
    "Step 3 of 1,024: x = tl.load(a) The last step.": "第 3 步，共 1,024 步：x = tl.load(a) 最后一步。",
    "  Hint: a row of W\n": "  提示：W 的一行\n",
    "another sentence": None,
    "no label": None,
    "See [it](#there).": None,
    "See [the row](#rows).": "见[row](#rows)。",
    "127": None,
}


@pytest.mark.parametrize("text", SAID)
def test_a_sentence_is_found_by_its_shape(text):
    assert CATALOG.say(text) == SAID[text]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_browser_says_what_python_says(tmp_path):
    real = sentences.catalog("site", "hints", "chapters")
    texts = [*SAID, *messages_of_checkers()]
    for catalog in (CATALOG, real):
        (tmp_path / "sentences.js").write_text(f"export const messages = {json.dumps(catalog.messages)};", encoding="utf-8")
        (tmp_path / "package.json").write_text('{"type": "module"}')
        shutil.copy(ROOT / "docs" / "javascripts" / "tongue.js", tmp_path)
        script = "import {lines} from './tongue.js'; console.log(JSON.stringify(JSON.parse(process.argv[1]).map(lines)))"
        done = subprocess.run(
            ["node", "--input-type=module", "-e", script, json.dumps(texts)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        heard = [text if said is None else said for text, said in zip(texts, json.loads(done.stdout), strict=True)]
        assert heard == [catalog.lines(text) for text in texts]


def messages_of_checkers():
    """What the checkers say to a stub, to a wrong answer and to a right one."""
    import numpy as np

    import reference

    def my_absmax(x):
        scale = np.abs(x).max() / np.float32(127)
        return (x / scale).astype(np.int8), scale

    return [
        checks.absmax(lambda x: NotImplemented).message,
        checks.absmax(my_absmax).message,
        checks.absmax(lambda x: 1 / 0).message,
        checks.absmax(lambda x: reference.absmax_quantize(x)).message,
        checks.absmax(lambda x: [1, 2]).message,
    ]


def test_what_a_checker_says_is_translated_line_by_line():
    catalog = sentences.catalog("site", "hints", "chapters")
    for message in messages_of_checkers():
        for line in catalog.lines(message).split("\n"):
            # What is left are names, code and numbers.
            assert re.search("[\u4e00-\u9fff]", line) or re.fullmatch(r"\s*\w+ = .*", line), line


def test_hints_keep_the_code_that_they_name():
    spans = re.compile(r"`[^`]+`|\btl\.\w+|\bnp\.\w+|\w+\[[^\]]*\]")
    for message, translation in sentences.read("hints").items():
        assert set(spans.findall(message)) == set(spans.findall(translation)), message


# ---- In pages and figures -----------------------------------------------------------------------------------------------------


def test_code_and_drawings_in_html_are_left_alone():
    markup = '<p title="a row of W">a row of W</p><code>a row of W</code><svg><text>a row of W</text></svg><b>error at threshold 1</b>'
    said = '<p title="W 的一行">W 的一行</p><code>a row of W</code><svg><text>a row of W</text></svg><b>阈值 1 时的误差</b>'
    assert rendered.in_html(markup, CATALOG) == said


def test_answers_tables_and_paragraphs_in_markdown_are_translated_and_code_is_not():
    text = "- error at threshold 6: **a row of W**\n- x: **2**\n\n| a row of W | 3 |\n| --- | --- |\n\n```text\na row of W\n```"
    said = "- 阈值 6 时的误差：**W 的一行**\n- x：**2**\n\n|W 的一行| 3 |\n| --- | --- |\n\n```text\na row of W\n```"
    assert rendered.in_markdown(text, CATALOG).replace("| W 的一行 |", "|W 的一行|") == said


STYLE = "font-size: 10px; font-family: 'DejaVu Sans', sans-serif; fill: #70757e"


def label(*lines):
    """A label of several lines as matplotlib writes it: (text, x, y) each."""
    texts = "".join(f'<text style="{STYLE}" transform="translate({x} {y})">{text}</text>' for text, x, y in lines)
    return f'<g id="text_1">{texts}</g>'


def places(svg):
    return re.findall(r'text-anchor: (\w+); .*?translate\(([\d.]+) ([\d.]+)\)">([^<]*)<', svg)


def test_a_label_of_one_line_keeps_its_anchor():
    svg = f'<g id="text_1"><text style="{STYLE}; text-anchor: end" x="5" y="6">a row of W</text></g>'
    made = labels.translated(svg, CATALOG)
    assert "W 的一行</text>" in made
    assert 'text-anchor: end" x="5" y="6"' in made


@pytest.mark.parametrize(("anchor", "share"), [("start", 0), ("middle", 0.5), ("end", 1)])
def test_a_label_of_several_lines_keeps_the_anchor_that_its_lines_share(anchor, share):
    catalog = Catalog({"a long first line and the second": "上面这一行\n下面"})
    words = ("a long first line", "and the second")
    svg = label(*((text, 200 - share * 10 * labels.width(text), y) for text, y in zip(words, (20, 32), strict=True)))
    found = places(labels.translated(svg, catalog))
    assert [(kind, text) for kind, *_, text in found] == [(anchor, "上面这一行"), (anchor, "下面")]
    assert [float(x) for _, x, _, _ in found] == pytest.approx([200, 200], abs=0.02)  # two decimals are written
    assert [float(y) for *_, y, _ in found] == [20, 32]


def test_fewer_lines_stand_in_the_middle_of_the_old_ones():
    catalog = Catalog({"a long first line and the second": "一行"})
    svg = label(("a long first line", 10, 20), ("and the second", 10, 32))
    assert [(float(y), text) for *_, y, text in places(labels.translated(svg, catalog))] == [(26, "一行")]


def test_a_label_is_wrapped_where_chinese_may_break():
    made = labels.wrapped("每个元素搬运的字节数（越低越好），以 MB 计", 3, 8)
    assert len(made) == 3
    assert "".join(made).replace(" ", "") == "每个元素搬运的字节数（越低越好），以MB计"
    assert not any(line[0] in "，。；：）" for line in made)
