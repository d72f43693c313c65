"""What an original and its translation have in common: formulae, code, the targets of links, placeholders and numbers; and terms."""

import re
from collections import Counter
from pathlib import Path

from tutorials.translation import blocks

FENCED = re.compile(r"^ *(```+|~~~+).*?\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$]+?)(?<!\s)\$(?![\w$])")
TARGET = re.compile(r"\]\(([^)\s]+)[^)]*\)|\b(?:href|src)=\"([^\"]+)\"")
#: What follows a bar in a placeholder is shown, and translated.
PLACEHOLDER = re.compile(r"\{\{ [^|]+?(?= \}\}| \|)")
TAG = re.compile(r"<[^>]+>|\{ ?[.:#][^}]*\}|\[\^[\w-]+\]")
NUMBER = re.compile(
    r"(\d+(?:,\d{3})*(?:\.\d+)?)[- ]?(thousand|million|billion|trillion|万亿|千亿|百亿|亿|千万|百万|万|千|[MB](?![A-Za-z]))?"
)
UNITS = {"M": 1e6, "B": 1e9, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
UNITS |= {"万亿": 1e12, "千亿": 1e11, "百亿": 1e10, "亿": 1e8, "千万": 1e7, "百万": 1e6, "万": 1e4, "千": 1e3}
#: Numbers that English spells out and Chinese may write as digits, or the reverse.
SPELLED = {
    "one": 1, "first": 1, "once": 1, "two": 2, "second": 2, "twice": 2, "both": 2, "half": 2, "three": 3, "third": 3, "four": 4,
    "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16, "thirty": 30,
}  # fmt: skip
#: Names with a number in them, whose number is theirs and no figure of the text.
NAMED = re.compile(r"(?<![A-Za-z])(?:LLM\.)?(?:u?int|b?float|fp|bf|sm_|mma|E\dM)\d+", re.IGNORECASE)


def parts(text: str) -> dict[str, Counter[str]]:
    """What a translation has to keep, by kind."""
    kept: dict[str, Counter[str]] = {}

    def take(kind: str, pattern: re.Pattern[str], text: str) -> str:
        found = [next(filter(None, reversed(match.groups())), match[0]) if match.groups() else match[0] for match in pattern.finditer(text)]
        kept[kind] = Counter(" ".join(one.split()) for one in found)
        return pattern.sub(" ", text)

    text = take("placeholders", PLACEHOLDER, text)
    text = take("fenced code", FENCED, text)
    text = take("code spans", SPAN, text)
    formulae = take("displayed formulae", DISPLAY, text)
    text = take("formulae", INLINE, formulae)
    text = take("targets of links", TARGET, text)
    text = NAMED.sub(" ", TAG.sub(" ", text))
    kept["numbers"] = Counter(f"{value(*match.groups()):.12g}" for match in NUMBER.finditer(text))
    return kept


def value(digits: str, unit: str | None) -> float:
    """A number in its language's way of counting: 6.7 billion, 67 亿."""
    return float(digits.replace(",", "")) * UNITS.get(unit or "", 1)


def spelled(text: str) -> set[str]:
    """The numbers that an English text spells out."""
    return {f"{SPELLED[word]:g}" for word in re.findall(r"[a-z]+", text.lower()) if word in SPELLED}


def differences(pair: blocks.Pair) -> list[str]:
    """How a translation differs from its original in what both should have, one line each."""
    assert pair.original is not None
    assert pair.translation is not None
    result = []
    here = parts(pair.translation)
    for kind, wanted in parts(pair.original).items():
        for what, counts in (("lacks", wanted - here[kind]), ("has", here[kind] - wanted)):
            if kind == "numbers" and what == "has":
                free = spelled(pair.original)
                counts = Counter({number: count for number, count in counts.items() if number not in free})
            if counts:
                result.append(f"{what} {kind}: {', '.join(sorted(counts.elements()))}")
    return result


#: Words that the Chinese edition does not use for a term of the glossary, by the word that it uses.
AVOIDED = {
    "离群值": ("异常值", "离群点", "异常点"),
    "离群列": ("异常列", "离群值列"),
    "离群特征": ("异常特征",),
    "混合精度分解": ("混合精度拆分", "混合精度的分解"),
    "缩放因子": ("比例因子", "缩放系数", "量化尺度", "缩放比例"),
    "反量化": ("去量化", "解量化", "逆量化"),
    "困惑度": ("混淆度",),
    "词元": ("标记符", "令牌"),
    "粒度": ("颗粒度",),
    "阈值": ("门限", "阀值", "临界值"),
    "零点": ("零值点",),
    "检查点": ("检验点",),
}


def glossary(path: Path | None = None) -> dict[str, set[str]]:
    """The glossary's terms and the Chinese words that it gives, those in brackets included."""
    path = path or blocks.ROOT / "docs" / "glossary.md"
    rows = re.findall(r"^\| (?!---|term )(.+?) \| (.+?) \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {term: {word.strip() for word in re.split(r"[，、（）/]", words) if word.strip()} for term, words in rows}


#: Terms whose Chinese word has to appear in a block as soon as the English one does.
TERMS = {
    "outlier": "离群值",
    "perplexity": "困惑度",
    "threshold": "阈值",
    "zero point": "零点",
    "granularity": "粒度",
    "token": "词元",
    "checkpoint": "检查点",
}
#: Of a word's compounds as much as they share: 离群值, 离群列, 离群特征.
STEMS = {"离群值": "离群"}


def misnamed(pair: blocks.Pair, name: str) -> list[str]:
    """Words of a translation for which the glossary has another, and terms of the original that it lacks; the glossary itself is free."""
    if name == "glossary.md" or pair.original is None or pair.translation is None:
        return []
    here, there = (TARGET.sub(" ", SPAN.sub(" ", FENCED.sub(" ", text))) for text in (pair.original, pair.translation))
    wrong = [f"{word}: write {term}" for term, others in AVOIDED.items() for word in others if word in there]
    for english, chinese in TERMS.items():
        stem = STEMS.get(chinese, chinese)
        if re.search(rf"\b{english}", here, re.IGNORECASE) and stem not in there:
            wrong.append(f"{english}: {stem} is missing")
    return wrong
