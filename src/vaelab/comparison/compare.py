"""Runs beside each other: what differs in their settings, and whether their numbers differ by more than chance."""

import csv as table_file
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaelab.comparison import tables
from vaelab.comparison.groups import Group, groups_of
from vaelab.comparison.measure import Measured, Protocol, is_measured, measure
from vaelab.comparison.notes import notes_on
from vaelab.comparison.settings import Setting, differing, settings_of
from vaelab.errors import InputError
from vaelab.files import write_text
from vaelab.pictures import output_path
from vaelab.runs import Run


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. `str()` of it is the table for the terminal.

    Attributes:
        protocol: how runs were measured.
        settings: all of them, in the order of their first runs.
        differing: the configuration keys in which they differ.
        groups: settings whose numbers can be compared; those of two groups cannot.
        notes: what a reader must know, as sentences.
        failed: runs of a grid that came to nothing, and why.
        page: the HTML page, if one was written.
    """

    protocol: Protocol
    settings: Sequence[Setting]
    differing: Sequence[str]
    groups: Sequence[Group]
    notes: Sequence[str]
    failed: Mapping[str, str] = field(default_factory=dict[str, str])
    page: Path | None = None

    def __str__(self) -> str:
        return tables.terminal(self)

    def to_dict(self) -> dict[str, Any]:
        """What `vaelab compare --json` prints."""
        return tables.as_dict(self)

    def csv(self) -> str:
        """One line a setting: its differing keys, its numbers with errors, its difference to the baseline."""
        text = io.StringIO()
        table_file.writer(text, lineterminator="\n").writerows(tables.csv_rows(self))
        return text.getvalue()


def compare(
    runs: "Sequence[str | os.PathLike[str] | Run]",
    *,
    importance_samples: int = 100,
    split: str = "test",
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    progress: bool = False,
    failed: Mapping[str, str] | None = None,
) -> Comparison:
    """Measure runs on held-out examples, and compare them.

    Runs that differ only by their seed are one setting. Settings are compared where they were measured on the same
    examples by the same kind of number (probabilities, or densities). Their differences are taken example by example,
    which is far sharper than the difference of two averages with an error bar each.

    Args:
        runs: run folders; the first one's setting is the baseline.
        importance_samples: K, draws of z an example for log p(x).
        split: "test", "validation" or "train".
        limit: only the first `limit` examples.
        out: an .html file to write.
        csv: a .csv file to write.
        progress: tell on stderr which run is being measured.
        failed: further runs that could not be made, and why; the page tells of them.

    Raises:
        InputError: a run that cannot be read, one that is given twice, or fewer than two.
    """
    how = Protocol(split, importance_samples, limit)
    files = [None if file is None else output_path(file, ending) for file, ending in ((out, ".html"), (csv, ".csv"))]
    opened = [Run.open(run) for run in runs]
    _check(opened, len(failed or {}), split)
    settings, notes = settings_of(_measured(opened, how, progress))
    if notes and len(settings) == len(settings[0].runs) == 1 and not failed:
        raise InputError(f"nothing to compare: {notes[0]}")
    groups = groups_of(settings)
    found = Comparison(
        protocol=how,
        settings=settings,
        differing=differing([setting.keys for setting in settings]),
        groups=groups,
        notes=[*notes, *notes_on(settings, groups, how)],
        failed=dict(failed or {}),
        page=files[0],
    )
    if files[1] is not None:
        write_text(files[1], found.csv())
    if files[0] is not None:
        from vaelab.comparison.page import render_page  # draws: slow to import

        write_text(files[0], render_page(found))
    return found


def _check(runs: Sequence[Run], failed: int, split: str) -> None:
    if len(runs) + failed < 2:
        raise InputError("nothing to compare: name two runs or more, or a grid with --vary KEY=VALUE,VALUE")
    places = [run.path.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{run}: given twice; name each run once")
        if split not in run.examples:
            raise InputError(f"{run}: its data have no {split} split, only {', '.join(run.examples)}; choose --split")


def _measured(runs: Sequence[Run], how: Protocol, progress: bool) -> list[Measured]:
    found: list[Measured] = []
    done = [is_measured(run, how) for run in runs]  # of all, so that an incomplete one is told at once
    for number, (run, known) in enumerate(zip(runs, done, strict=True), start=1):
        if progress and not known:
            print(f"vaelab: measures {run} ({number} of {len(runs)})", file=sys.stderr, flush=True)
        found.append(measure(run, how))
    return found
