"""How long a chapter takes, counted on its page: no chapter says it of itself.

The rates are meant for a reader who knows NumPy and reads to understand. They are rough for one person, and the same for every
chapter, which is what a plan needs.
"""

import re
from dataclasses import dataclass

WORDS_PER_MINUTE = 170
LINES_PER_MINUTE = 12
PREDICTION_MINUTES = 45 / 60
PICTURE_MINUTES = 40 / 60
#: A chapter that takes longer to read should be two.
LONGEST = 20
#: Of an exercise: to read it and to run the checker, and for each line of the solution.
EXERCISE_MINUTES, SOLUTION_LINE_MINUTES = 2, 1

FOLDED = re.compile(r'^\?\?\? (\w+) "[^"]*"\n+((?:(?: {4}.*)?\n)*)', re.MULTILINE)
FENCE = re.compile(r"^ *(```+) *(\S*).*\n((?:.*\n)*?) *\1 *$", re.MULTILINE)
TABLE = re.compile(r"(?:^ *\|.*\n)+", re.MULTILINE)
#: Its own minutes hold the reading of it.
EXERCISE = re.compile(r"\n## Exercise\n.*?(?=\n## |\Z)", re.DOTALL)


@dataclass(frozen=True)
class Effort:
    """What a chapter asks of its reader.

    Attributes:
        words: of the text, formulae left out.
        lines: of code, of this page and of the repository; one that stands there several times is counted once.
        predictions: how many.
        pictures: how many, and how many tables.
        solution: lines of the exercises' solutions.
    """

    words: int
    lines: int
    predictions: int
    pictures: int
    solution: int

    @property
    def reading(self) -> int:
        """Minutes to read the chapter and to make its predictions."""
        minutes = self.words / WORDS_PER_MINUTE + self.lines / LINES_PER_MINUTE
        return round(minutes + self.predictions * PREDICTION_MINUTES + self.pictures * PICTURE_MINUTES)

    @property
    def exercise(self) -> int:
        """Minutes for the exercise."""
        return round(EXERCISE_MINUTES + self.solution * SOLUTION_LINE_MINUTES)


def of_page(markdown: str) -> Effort:
    """The effort that a chapter's page takes, in the Markdown that docs/hooks/notebooks.py makes of a notebook."""
    solution = 0

    def unfold(match: re.Match[str]) -> str:
        nonlocal solution
        if match[1] == "success":
            solution += len(code_lines(match[2]))
        # What is folded is not read, but for the result of a prediction.
        return re.sub(r"^ {4}", "", match[2], flags=re.MULTILINE) if match[1] == "prediction" else ""

    text = EXERCISE.sub("\n", FOLDED.sub(unfold, markdown))
    lines = set(code_lines(text))
    prose = FENCE.sub("", text)
    pictures = len(re.findall(r"^ *!\[", prose, re.MULTILINE))
    # A prediction's fields are part of its time.
    for nothing in (r"<form.*?</form>", r"!\[(?:\\.|[^\]])*\]\([^)]*\)", r"\$\$.*?\$\$", r"\]\([^)]*\)", r"<[^>]+>", r"\{ [.:#][^}]*\}"):
        prose = re.sub(nothing, " ", prose, flags=re.DOTALL)
    prose, tables = TABLE.subn("", prose)
    words = len(re.findall(r"[^\s|>#*-]+", prose))
    return Effort(words, len(lines), text.count('!!! question "Predict'), pictures + tables, solution)


def code_lines(markdown: str) -> list[str]:
    """The lines of the blocks of Python, without empty ones, indentation left out."""
    blocks = [match[3] for match in FENCE.finditer(markdown) if match[2] == "python"]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
