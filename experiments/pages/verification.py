"""The generated part of docs/verification.md, and the picture of docs/bounds.md."""

from pathlib import Path
from typing import Any

from ..command import InputError
from . import style

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verification.md"

#: What becomes of faults in the machine code.
NAMES = ("tried", "caught", "company", "redundant", "equivalent", "survived")

BEGIN, END = "<!-- begin: made by python -m experiments.verification -->", "<!-- end -->"


def picture(errors: dict[str, Any]) -> Any:
    """Both series of `measure_errors`, bounds dashed."""
    with style.figure(9, 3.8, columns=2) as (figure, (left, right)):
        by_k = errors["by_k"]
        ks = [row["k"] for row in by_k]
        left.plot(ks, [row["bound"] for row in by_k], "--", color=style.GREY, label="bound")
        left.plot(ks, [row["worst"] for row in by_k], "x", color=style.RED, label="the worst input")
        left.plot(ks, [row["normal"] for row in by_k], "o-", markersize=4, label="normal input")
        left.set(xscale="log", yscale="log", xlabel="K", ylabel="largest error, in steps of both scales", title="a quantized product")
        by_size = errors["by_size"]
        sizes = [row["size"] for row in by_size]
        for name, label, color in (("vectorwise", "vector-wise", style.ORANGE), ("llm_int8", "LLM.int8()", style.GREEN)):
            right.plot(sizes, [row[f"{name}_bound"] for row in by_size], "--", color=color, label=f"{label}, bound")
            right.plot(sizes, [row[name] for row in by_size], "o-", markersize=4, color=color, label=label)
        right.set(xscale="log", yscale="log", xlabel="size of one outlier column", ylabel="largest error of Y", title="one outlier column")
        for axes in (left, right):
            axes.legend(fontsize=9)
        return figure


def page_text(record: dict[str, Any], mutants: dict[str, Any] | None, faults: dict[str, Any] | None) -> str:
    """The generated part of docs/verification.md, in Markdown."""
    files = record["files"]
    total = {key: sum(row[key] for row in files.values()) for key in ("laws", "tests", "cases")}
    patterns = max((row["bit_patterns"] for row in files.values()), default=0)
    dates = sorted(row["date"] for row in files.values())
    lines = [
        f"Made by `{record['command']}`, {record['date']}, on {record['device']['cpu']}, Python {record['versions']['python']}, "
        f"Torch {record['versions']['torch']}. The tests ran between {dates[0]} and {dates[-1]}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| laws | {total['laws']:,} test functions, {total['tests']:,} with their parameters |",
        f"| cases tried | {total['cases']:,} |",
        f"| bit patterns | {f'up to {patterns:,} of the 65,536 that 16 bits have, in one test' if patterns else 'not counted'} |",
        f"| mutants | {mutants_text(mutants)} |",
        *faults_lines(faults),
        f"| compiled for | {', '.join(row['arch'] for row in record['compiled']) or 'not recorded'} |",
        f"| run on a GPU | {gpu_text(files)} |",
        "",
        "### Errors against their bounds",
        "",
        "The largest ratio of error and bound that was found. Above 1 a test fails; a ratio near 1 says that the bound is not slack.",
        "",
        "| bound | largest ratio |",
        "| --- | --- |",
        *(f"| {name} | {ratio:.4f} |" for name, ratio in sorted(merged_ratios(files).items())),
        "",
        "### What the kernels compile to",
        "",
        "| architecture | kernels | specializations | that spill registers | matrix instructions |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['arch']} | {row['kernels']} | {row['specializations']} | {row['spilling']} | {', '.join(row['matrix'])} |"
            for row in record["compiled"]
        ),
        "",
        *faults_table(faults),
        "### By file",
        "",
        "| file | laws | tests | cases | date |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{name}` | {row['laws']} | {row['tests']} | {row['cases']:,} | {row['date']} |"
            for name, row in sorted(files.items())
            if row["tests"]
        ),
    ]
    return "\n".join(lines)


def merged_ratios(files: dict[str, Any]) -> dict[str, float]:
    """The largest ratio over all files, by name."""
    ratios: dict[str, float] = {}
    for row in files.values():
        for name, ratio in row["ratios"].items():
            ratios[name] = max(ratio, ratios.get(name, 0.0))
    return ratios


def faults_lines(faults: dict[str, Any] | None) -> list[str]:
    """What the record of tests/tools/machine_faults.py says, in one line; none without a record."""
    if faults is None:
        return []
    rows = faults["rows"]
    tried, caught = (sum(sum(row[what].values()) for row in rows) for what in ("tried", "caught"))
    company, redundant = (sum(len(row[what]) for row in rows) for what in ("company", "redundant"))
    survivors = [survivor for row in rows for survivor in row["survivors"]]
    equivalent = sum(survivor["equivalent"] for survivor in survivors)
    unexplained = sum(survivor["why"] is None for survivor in survivors)
    architectures = ", ".join(dict.fromkeys(row["arch"] for row in rows))
    score = (caught + company) / max(1, tried - redundant - equivalent)
    return [
        f"| faults in the machine code | {tried:,} tried on {architectures}: {caught:,} caught alone, {company} in company, {redundant} "
        f"redundant, {equivalent} equivalent, {len(survivors) - equivalent} survived ({unexplained} of them not explained), "
        f"a score of {score:.1%} ({faults['date']}) |"
    ]


def faults_table(faults: dict[str, Any] | None) -> list[str]:
    """The faults by kind, and by kernel and architecture; none without a record."""
    if faults is None:
        return []
    rows = faults["rows"]

    def cells(name: str, counts: dict[str, int]) -> str:
        return f"| {name} | " + " | ".join(f"{counts[what]:,}" for what in NAMES) + " |"

    by_kind: dict[str, dict[str, int]] = {}
    for row in rows:
        for what in ("tried", "caught"):
            for kind, count in row[what].items():
                counts = by_kind.setdefault(kind, dict.fromkeys(NAMES, 0))
                counts[what] += count
        for what in ("company", "redundant"):
            for fault in row[what]:
                by_kind[fault["kind"]][what] += 1
        for survivor in row["survivors"]:
            by_kind[survivor["kind"]]["equivalent" if survivor["equivalent"] else "survived"] += 1
    by_kernel = {
        f"`{row['kernel']}`, {row['arch']}, {row['variants']} variants": {
            "tried": sum(row["tried"].values()), "caught": sum(row["caught"].values()),
            "company": len(row["company"]), "redundant": len(row["redundant"]),
            "equivalent": sum(s["equivalent"] for s in row["survivors"]), "survived": sum(not s["equivalent"] for s in row["survivors"]),
        }
        for row in rows
    }  # fmt: skip
    return [
        "### Faults in the machine code",
        "",
        f"Made by `{faults['command']}`. *In company*: survives alone, and is caught once the redundant ones are gone as well. "
        "*Redundant*: without it the vector clocks still order every two accesses that conflict. *Equivalent*: no input could show it; "
        "`tests/tools/surviving_faults.toml` has the reason of each survivor.",
        "",
        "| fault | tried | caught | in company | redundant | equivalent | survived |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(cells(kind, by_kind[kind]) for kind in sorted(by_kind)),
        *(cells(name, counts) for name, counts in by_kernel.items()),
        "",
    ]


def mutants_text(mutants: dict[str, Any] | None) -> str:
    """What the record of tests/tools/mutants.py says, in one line."""
    if mutants is None:
        return "no record: run `make mutants`"
    return (
        f"{mutants['made']:,} of {mutants['possible']:,} made: {mutants['killed']:,} killed, {mutants['equivalent']} equivalent, "
        f"{mutants['survived']} survived, a score of {mutants['score']:.1%} ({mutants['date']})"
    )


def gpu_text(files: dict[str, Any]) -> str:
    """Which files ran on which GPU; the others ran in Triton's interpreter."""
    on_gpu = {name: row["gpu"] for name, row in files.items() if row["gpu"]}
    if not on_gpu:
        return "nothing: the kernels ran in Triton's interpreter; for GPUs they were compiled, not run"
    return "; ".join(f"{', '.join(f'`{n}`' for n, g in on_gpu.items() if g == gpu)} on {gpu}" for gpu in sorted(set(on_gpu.values())))


def with_part(page: str, part: str) -> str:
    """The page with its generated part replaced.

    Raises:
        InputError: the page has no such part.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"{PAGE} must hold the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"
