"""What the doctor says: findings, and the list of all that it looks for."""

import json
import math
import shlex
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import Markup

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
WIDTH = 80


@dataclass(frozen=True)
class Plot:
    """A small figure of what was found.

    Attributes:
        drawing: an <svg> element, for a report.
        caption: what it shows, in one or two sentences.
    """

    drawing: Markup
    caption: str


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        name: of the illness, one of `ILLNESSES`.
        severity: `error`, the result is useless or wrong; `warning`, it is worse than it could be, or misleads; `info`,
            good to know, and no alarm.
        message: what was measured, one sentence with numbers.
        evidence: the numbers, by name; for a foreign model also the line, `file.py:23`.
        cause: where it most likely comes from.
        remedy: a command to run, or a line to change.
        plot: for a report; None where there is nothing to draw.
    """

    name: str
    severity: Severity
    message: str
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])
    cause: str = ""
    remedy: str = ""
    plot: Plot | None = None

    @property
    def is_alarm(self) -> bool:
        """Whether it is an error or a warning."""
        return self.severity != "info"

    def to_dict(self) -> dict[str, Any]:
        """As `vaelab doctor --json` prints it; numbers that are not finite are None, for JSON has no word for them."""
        keys = ("name", "severity", "message", "evidence", "cause", "remedy")
        return {key: _plain(getattr(self, key)) for key in keys}

    def __str__(self) -> str:
        lines = [f"{self.severity.upper()}: {self.name}"]
        for head, text in (("", self.message), ("cause:  ", self.cause), ("remedy: ", self.remedy)):
            for number, line in enumerate(text.splitlines()):
                lines += _wrapped(line, "  " + (" " * len(head) if number else head), "  " + " " * len(head))
        return "\n".join(lines)


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    """Text in lines of 80 columns; those of a command end in a backslash, so that it can be copied.

    A command is broken between its words alone: within quotes a backslash would be one of the characters.
    """
    command = text.startswith(("vaelab ", "python "))
    if command:
        text = " ".join(shlex.quote(word).replace(" ", "\0") for word in shlex.split(text))
    lines = textwrap.wrap(
        text,
        WIDTH - 2 * command,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") + " \\" * (command and line is not lines[-1]) for line in lines]


@dataclass(frozen=True)
class Diagnosis:
    """All findings on one run or model, the gravest first.

    Attributes:
        subject: what was examined, in words.
    """

    subject: str
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """The errors and warnings among the findings."""
        return [finding for finding in self.findings if finding.is_alarm]

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name.

        Raises:
            KeyError: there is none.
        """
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(finding.name == name for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """What `vaelab doctor --json` prints."""
        return {"findings": [finding.to_dict() for finding in self.findings]}

    def __str__(self) -> str:
        counts = {level: sum(one.severity == level for one in self.findings) for level in SEVERITIES}
        told = [f"{count} {level}{'s' * (count != 1 and level != 'info')}" for level, count in counts.items() if count]
        head = textwrap.fill(f"{self.subject}: {', '.join(told) or 'nothing found'}", WIDTH, break_long_words=False)
        return "\n\n".join([head, *map(str, self.findings)])


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first, else in the order in which they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _plain(value: Any) -> Any:
    """The same for JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    json.dumps(value)  # nothing else may come in unnoticed
    return value


@dataclass(frozen=True)
class Illness:
    """What the doctor looks for.

    Attributes:
        name: of the finding.
        sought: what it is.
        threshold: when it is found, with what severity, and why there.
    """

    name: str
    sought: str
    threshold: str
