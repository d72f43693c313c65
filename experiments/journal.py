"""A record that is whole on disk after every row, and goes on where it stopped.

    journal = Journal(path, heading, key=lambda row: row["name"], resume=True)
    for name in names:
        journal.measure(name, lambda: {"name": name, "seconds": ...})
    raise SystemExit(journal.status)

A row that fails, hangs or computes something wrong is recorded with its reason, and the next one is measured. What is on disk is
never measured again: a row, what failed, and what was skipped. A process that is killed loses the row that it was at, and no other.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .command import InputError, first_line
from .records import plain, write

Row = dict[str, Any]

#: Exit status where something failed or was wrong; and where the process cannot go on, but another one can, with --resume.
FAILED, LOST = 1, 4

#: A row at which the process has died this often, without a word of its own, is not tried again.
MOST_DEATHS = 3

#: Seconds after which a row counts as one that hangs.
PATIENCE = 300.0


class Skipped(Exception):
    """A row cannot be measured here, and nothing is wrong; the message says why."""


class Journal:
    """The record of a command.

    Attributes:
        record: the heading, and: "rows", in the order of `order`; "failed" and "skipped", the reason by the row's name; "begun", how
            often a row was begun and not ended; "planned", the names of all rows that were requested.
    """

    def __init__(
        self,
        path: Path,
        heading: dict[str, Any],
        key: Callable[[Row], str],
        resume: bool,
        order: Sequence[str] = (),
        same: Sequence[str] = (),
        alive: Callable[[], bool] = lambda: True,
        patience: float = PATIENCE,
    ) -> None:
        """Opens the record at `path`.

        Args:
            path: of the JSON file.
            heading: its first entries, as `machine.heading` makes them.
            key: gives the name of a row.
            resume: whether to go on with a record that is there; otherwise it is replaced at the first row.
            order: names of rows, in the order in which the record has them; others come last.
            same: the settings that must not differ between the parts of one record.
            alive: whether the device still works; called after a row has failed.
            patience: seconds after which a row counts as one that hangs.

        Raises:
            InputError: the record that is there was made on another device, with other versions or other settings.
        """
        self._path, self._key, self._alive, self._patience = path, key, alive, patience
        self._rank = {name: i for i, name in enumerate(order)}
        self._lock = threading.Lock()
        empty: dict[str, Any] = {"rows": [], "failed": {}, "skipped": {}, "begun": {}, "planned": []}
        earlier = _earlier(path, plain(heading), same) if resume else None
        self.record = empty | (earlier or heading)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the record, those of an earlier part if there was one."""
        return self.record["settings"]

    @property
    def status(self) -> int:
        """The command's exit status."""
        wrong = any(row.get("wrong") for row in self.record["rows"])
        return FAILED if self.record["failed"] or wrong else 0

    def pending(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are not on disk yet; `names` join the plan."""
        plan = self.record["planned"]
        plan += [name for name in names if name not in plan]
        known = names_of(self.record, self._key)
        return [name for name in names if name not in known]

    def measure(self, name: str, work: Callable[[], Row]) -> None:
        """Does the work of the row `name`, unless it is on disk, and writes the record.

        Raises:
            SystemExit: with status LOST, where this process cannot go on: the device is lost, or the row hangs.
        """
        if not self.pending([name]):
            return
        begun = self.record["begun"]
        if begun.get(name, 0) >= MOST_DEATHS:
            self._end(name, failed=f"the process died {begun[name]} times at this row")
            return
        begun[name] = begun.get(name, 0) + 1
        self.write()
        start = time.monotonic()
        timer = threading.Timer(self._patience, self._hung, [name])
        timer.daemon = True
        timer.start()
        try:
            row = work()
        except Skipped as reason:
            self._end(name, skipped=str(reason))
        except Exception as error:  # whatever it is, it is this row's
            timer.cancel()
            self._end(name, failed=f"{type(error).__name__}: {first_line(error)}")
            if not self._alive():
                print(f"{name}: the device is lost; run the command again with --resume", file=sys.stderr)
                raise SystemExit(LOST) from error
        except BaseException:  # the user or a limit: the row is as good as not begun
            timer.cancel()
            del begun[name]
            self.write()
            raise
        else:
            timer.cancel()
            self._end(name, row=row | {"took": time.monotonic() - start})
        finally:
            timer.cancel()

    def _hung(self, name: str) -> None:
        self._end(name, failed=f"no result after {self._patience:g} seconds")
        print(f"{name}: no result after {self._patience:g} seconds; run the command again with --resume", file=sys.stderr, flush=True)
        os._exit(LOST)

    def _end(self, name: str, row: Row | None = None, failed: str | None = None, skipped: str | None = None) -> None:
        with self._lock:
            self.record["begun"].pop(name, None)
            if row is not None:
                self.record["rows"].append(row)
                self.record["rows"].sort(key=lambda one: self._rank.get(self._key(one), len(self._rank)))
            if failed is not None:
                self.record["failed"][name] = failed
                print(f"{name}: {failed}", file=sys.stderr)
            if skipped is not None:
                self.record["skipped"][name] = skipped
        self.write()

    def write(self) -> None:
        """Writes the record, whole or not at all."""
        with self._lock:
            write(self._path, self.record)


def names_of(record: Row, key: Callable[[Row], str]) -> set[str]:
    """The names of the rows that are not measured again: those that are there, that failed, and that were skipped."""
    return {key(row) for row in record["rows"]} | record["failed"].keys() | record["skipped"].keys()


def _earlier(path: Path, heading: dict[str, Any], same: Sequence[str]) -> dict[str, Any] | None:
    """The record at `path`, None where there is none."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        lists = [record["rows"], record["failed"], record["begun"], record["settings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--resume: {path} is not a record of this experiment") from error
    assert lists
    found = {name: (record.get(name), heading[name]) for name in ("experiment", "versions")}
    found |= {name: (record["settings"].get(name), heading["settings"][name]) for name in same}
    found["gpu"] = (record["device"]["gpu"], heading["device"]["gpu"])
    other = [f"{name}: {old} there, {new} here" for name, (old, new) in found.items() if old != new]
    if other:
        raise InputError(f"--resume: {path} was made with other settings ({'; '.join(other)}); name another file with --out")
    return record
