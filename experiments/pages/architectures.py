"""docs/architectures.md from the record of `experiments.architectures`; without Torch."""

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- begin: made by python -m experiments.architectures -->", "<!-- end -->"


#: What the table says of an outcome that is not a failure.
SHOWN = {"passes": "yes", "-": "-", "as float": "as float"}


def table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a line per architecture, a column per step."""
    steps = record["settings"]["steps"]
    head = ["architecture", "int8", "experts", "float", "bytes", "error", *steps]
    rows = []
    for row in record["rows"]:
        outcomes = [SHOWN.get(row["steps"][step], "no") for step in steps]
        numbers = [f"{row[key]:.2f}" if key in row else "" for key in ("bytes",)] + [f"{row['error']:.3f}" if "error" in row else ""]
        counts = [str(row.get("int8", "")), str(row.get("experts") or "-"), str(row.get("float", ""))]
        rows.append([row["architecture"], *counts, *numbers, *outcomes])
    return head, rows


def render(record: dict[str, Any]) -> str:
    """The part of the page that the record fills."""
    head, rows = table(record)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    passed = sum(all(outcome in SHOWN for outcome in row["steps"].values()) for row in record["rows"])
    failures = [
        f"- {row['architecture']}, {step}: {outcome}"
        for row in record["rows"]
        for step, outcome in row["steps"].items()
        if outcome not in SHOWN
    ]
    reasons: dict[str, list[str]] = {}
    for row in record["rows"]:
        for reason in row.get("reasons", ()):
            reasons.setdefault(re.sub(r"its weight is also .*", "its weight is also another's", reason), []).append(row["architecture"])
    versions = record["versions"]
    return "\n".join(
        [
            f"{passed} of {len(record['rows'])} architectures pass every step that their float models pass "
            f"(transformers {versions['transformers']}, Torch {versions['torch']}, on the CPU; {record['date']}).",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            *(["What does not pass:", "", *failures, ""] if failures else []),
            "Why layers stay float, and in which architectures:",
            "",
            *(f"- {reason}: {', '.join(dict.fromkeys(names))}" for reason, names in sorted(reasons.items())),
        ]
    )


def filled(text: str, record: dict[str, Any]) -> str:
    """The page's text with the record between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render(record)}\n{END}{after}"


def write(record: dict[str, Any]) -> None:
    """Writes docs/architectures.md."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
