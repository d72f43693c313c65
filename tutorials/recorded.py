"""The figures and sentences of chapter 11, from the JSON records of the experiments: a notebook times nothing itself.

Sentences with figures in them are made from the record as well, so that they stay true when it is made anew.
"""

from typing import Any

from IPython.display import display

from experiments import records

Record = dict[str, Any]


def say(text: str) -> None:
    """Shows Markdown below the cell."""
    display({"text/markdown": text, "text/plain": text}, raw=True)


def read(name: str) -> Record:
    """The record experiments/results/NAME.json.

    Raises:
        FileNotFoundError: there is none; says which command makes it.
    """
    record = records.read(name)
    if record is None:
        raise FileNotFoundError(f"experiments/results/{name}.json is missing; `make results` says which command makes it")
    return record


def source(record: Record) -> str:
    """Where the figures come from: command, date, device."""
    device = record["device"]
    where = device["gpu"] if record["settings"].get("device") == "cuda" else f"{device['cpu']}, {device['threads']} thread(s)"
    return f"Recorded {record['date']} by `{record['command']}` on {where}; Torch {record['versions']['torch']}."


def ratio(row: Record, name: str) -> float:
    """How many times as fast as F.linear in bfloat16 the contender was, median."""
    return row["contenders"][name]["ratio"]["median"]


def times(value: float) -> str:
    """A ratio of speeds in words."""
    return f"{value:.1f} times as fast" if value >= 1 else f"{1 / value:.1f} times as slow"


def interval(difference: dict[str, float]) -> str:
    """A change of perplexity in percent, with its interval."""
    return f"{difference['percent']:+.1f} % ({difference['low']:+.1f} to {difference['high']:+.1f})"
