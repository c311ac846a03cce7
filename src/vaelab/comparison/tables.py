"""A comparison as text for the terminal, as lines of CSV and as JSON."""

import math
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vaelab.comparison.groups import Difference, Group, means_of
from vaelab.comparison.measure import COLUMNS
from vaelab.comparison.settings import Setting, short
from vaelab.comparison.statistics import CrossedMean
from vaelab.words import count, rounded

if TYPE_CHECKING:
    from vaelab.comparison.compare import Comparison

TITLES = {"log_px": "log p(x)", "elbo": "ELBO", "rate": "rate", "distortion": "distortion"}
NONE = "-"


def pm(mean: CrossedMean, signed: bool = False) -> str:
    """`−98.13 ± 0.41`, to two digits of the error."""
    text = rounded(mean.mean, mean.stderr)
    if not math.isfinite(mean.mean):
        return text
    if signed and mean.mean > 0:
        text = f"+{text}"
    return text if mean.stderr is None else f"{text} ± {rounded(mean.stderr, mean.stderr)}"


def p_text(p: float | None) -> str:
    """A p-value as it is read: `0.03`, `< 0.001`."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def bits_per_dim(setting: Setting, means: dict[str, CrossedMean]) -> CrossedMean | None:
    """Log p(x) as bits for each dimension of x; None where it is a density."""
    if not setting.runs[0].discrete or "log_px" not in means:
        return None
    scale = math.log(2) * setting.runs[0].run.spec.dims
    one = means["log_px"]
    return one._replace(mean=-one.mean / scale, stderr=None if one.stderr is None else one.stderr / scale)


def active_units(setting: Setting) -> str:
    """`12 of 20`; over several runs the range, `11–13 of 20`."""
    counts = [run.evaluation.active_units for run in setting.runs]
    known = [count for count in counts if count is not None]
    if not known:
        return NONE
    low, high = min(known), max(known)
    return f"{low}{'' if low == high else f'–{high}'} of {setting.runs[0].evaluation.latent_dim}"


def numbers_table(comparison: "Comparison") -> tuple[list[str], list[list[str]]]:
    """Heading and one line a setting: what the terminal and the page show."""
    found = [(setting, means_of(setting)) for setting in comparison.settings]
    names = [name for name in COLUMNS if any(name in means for _, means in found)]
    head = ["", "setting", "seeds", *(TITLES[name] for name in names)]
    bits = [bits_per_dim(setting, means) for setting, means in found]
    has_bits = any(one is not None for one in bits)
    head += (["bits/dim"] if has_bits else []) + ["active"]
    lines: list[list[str]] = []
    for (setting, means), bit in zip(found, bits, strict=True):
        line = [setting.letter, setting.label, str(len(setting.runs))]
        line += [pm(means[name]) if name in means else NONE for name in names]
        line += ([NONE if bit is None else pm(bit)] if has_bits else []) + [active_units(setting)]
        lines.append(line)
    return head, lines


def differences_table(group: Group) -> tuple[list[str], list[list[str]]]:
    """Heading and one line a setting but the baseline: its differences, with p-values adjusted for their number."""
    names = [name for name in COLUMNS if any(name in one for one in group.differences.values())]
    head = ["", "setting", *(text for name in names for text in (TITLES[name], "p"))]
    lines = [
        [setting.letter, setting.label, *(text for name in names for text in _difference(these.get(name)))]
        for setting in group.settings
        if (these := group.differences.get(setting.letter)) is not None
    ]
    return head, lines


def _difference(found: Difference | None) -> tuple[str, str]:
    return (NONE, NONE) if found is None else (pm(found.mean, signed=True), p_text(found.p_adjusted))


def keys_table(comparison: "Comparison") -> tuple[list[str], list[list[str]]]:
    """Heading and one line a setting: the values of the keys in which the settings differ."""
    head = ["", *(short(key, comparison.differing) for key in comparison.differing)]
    lines = [
        [setting.letter, *(setting.keys.get(key, NONE) for key in comparison.differing)]
        for setting in comparison.settings
    ]
    return head, lines


def verdict(group: Group) -> str:
    """Which setting is best, and which are not clearly worse."""
    extreme = "Lowest" if group.metric == "distortion" else "Highest"
    said = f"{extreme} {TITLES[group.metric]}: {group.best.letter} ({group.best.label})."
    pairs = math.comb(len(group.settings) - len(group.unranked), 2)
    if group.rivals:
        counted = f", counting all {pairs} pairs" if pairs > 1 else ""
        said += f" Not told apart from it{counted}: {', '.join(one.letter for one in group.rivals)}."
    elif others := [one.letter for one in group.settings if one not in (group.best, *group.unranked)]:
        said += f" Worse by more than chance explains: {', '.join(others)}."
    if group.unranked:
        said += f" Not ranked, for lack of a finite one: {', '.join(one.letter for one in group.unranked)}."
    return said


# -- the terminal --------------------------------------------------------------------------------------------------


def terminal(comparison: "Comparison") -> str:
    """Tables and sentences, no line longer than the terminal is wide."""
    width = shutil.get_terminal_size().columns
    how, sizes = comparison.protocol, {one.runs[0].evaluation.n for one in comparison.settings}
    examples = f": {count(sizes.pop(), 'example')}" if len(sizes) == 1 else ""
    about = f"{how.split}{examples}, K = {how.importance_samples}"
    parts = [folded(f"{about}; nats per example, ± one standard error over seeds and examples", width)]
    if comparison.differing and not _labels_tell_all(comparison):
        parts.append(_keys(comparison, width))
    parts.append(table(*numbers_table(comparison), width=width))
    for group in comparison.groups:
        several = len(comparison.groups) > 1
        if len(group.settings) > 1:
            base = group.settings[0].letter
            letters = f" {', '.join(one.letter for one in group.settings)}" if several else ""
            heading = f"Difference to {base}, example by example{f' ({group.title}:{letters})' if several else ''}"
            parts.append(folded(heading, width) + "\n" + table(*differences_table(group), width=width, together=2))
            parts.append(folded(verdict(group), width))
    parts += [folded(f"Note: {note}", width) for note in comparison.notes]
    parts += [folded(f"Failed: {name}: {why}", width) for name, why in comparison.failed.items()]
    return "\n\n".join(parts)


def _keys(comparison: "Comparison", width: int) -> str:
    """The keys that differ as a table; as sentences where it would go on below more than once."""
    text = table(*keys_table(comparison), width=width)
    if text.count("\n\n") < 2:
        return text
    first, *others = comparison.settings
    margin = max(len(one.letter) for one in comparison.settings) + 2
    said = [folded(f"Keys of {first.letter}, and those that are different in the others", width)]
    for one in (first, *others):
        words = [
            f"{short(key, comparison.differing)}={one.keys[key]}"
            for key in comparison.differing
            if key in one.keys and (one is first or one.keys[key] != first.keys.get(key))
        ]
        said.append(folded(" ".join([one.letter.ljust(margin - 1), *words]), width, " " * margin))
    return "\n".join(said)


def _labels_tell_all(comparison: "Comparison") -> bool:
    def told(setting: Setting) -> str:
        keys = comparison.differing
        return " ".join(f"{short(key, keys)}={setting.keys[key]}" for key in keys if key in setting.keys)

    return all(setting.label == told(setting) for setting in comparison.settings)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], *, width: int, together: int = 1) -> str:
    """A table in plain text. What is too wide goes on below, each part with the first column again.

    From the third column on, so many columns stay `together`. A single column that is too wide is cut.
    """
    room = width - max(len(line[0]) for line in (head, *lines)) - 2
    cells = [[_cut(cell, room) for cell in line] for line in (head, *lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    blocks: list[list[int]] = [[]]
    for columns in [range(1, 2), *(range(at, at + together) for at in range(2, len(head), together))]:
        if blocks[-1] and sum(widths[one] + 2 for one in (*blocks[-1], *columns)) > room + 2:
            blocks.append([])
        blocks[-1] += columns
    return "\n\n".join(
        "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(_aligned(line[one], widths[one], one) for one in block)]).rstrip()
            for line in cells
        )
        for block in blocks
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 1 else cell.rjust(width)


def _cut(cell: str, room: int) -> str:
    return cell if len(cell) <= room else f"{cell[: max(1, room - 1)]}…"


def folded(text: str, width: int, indent: str = "") -> str:
    """Lines no longer than `width`, broken between words; a longer word stays whole. All but the first indented."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# -- files ---------------------------------------------------------------------------------------------------------


def csv_rows(comparison: "Comparison") -> list[list[str]]:
    """Heading and one line a setting; full precision, empty where there is no number."""
    groups = {one.letter: number for number, group in enumerate(comparison.groups, 1) for one in group.settings}
    differences = {key: found for group in comparison.groups for key, found in group.differences.items()}
    extra = [text for name in COLUMNS for text in (name, f"{name}_stderr")]
    against = [text for name in COLUMNS for text in (f"{name}_difference", f"{name}_difference_stderr", f"{name}_p")]
    other = ["bits_per_dim", "bits_per_dim_stderr", "active_units", "latent_dim", "n"]
    rows = [["setting", "label", *comparison.differing, "seeds", "group", *extra, *other, *against, "runs"]]
    for setting in comparison.settings:
        means, these = means_of(setting), differences.get(setting.letter, {})
        line: list[Any] = [setting.letter, setting.label, *(setting.keys.get(key) for key in comparison.differing)]
        line += [len(setting.runs), groups[setting.letter]]
        for name in COLUMNS:
            line += [means[name].mean, means[name].stderr] if name in means else [None, None]
        bits, first = bits_per_dim(setting, means), setting.runs[0].evaluation
        line += [None, None] if bits is None else [bits.mean, bits.stderr]
        active = [run.evaluation.active_units for run in setting.runs if run.evaluation.active_units is not None]
        line += [sum(active) / len(active) if active else None, first.latent_dim, first.n]
        for name in COLUMNS:
            found = these.get(name)
            line += [None, None, None] if found is None else [found.mean.mean, found.mean.stderr, found.p_adjusted]
        line.append(" ".join(str(run.run) for run in setting.runs))
        rows.append(["" if cell is None else str(cell) for cell in line])
    return rows


def as_dict(comparison: "Comparison") -> dict[str, Any]:
    """Plain tables for JSON; numbers that are not finite are None."""
    how = comparison.protocol
    return {
        "split": how.split,
        "importance_samples": how.importance_samples,
        "limit": how.limit,
        "differing": list(comparison.differing),
        "settings": [
            {
                "setting": setting.letter,
                "label": setting.label,
                "keys": {key: setting.keys.get(key) for key in comparison.differing},
                "numbers": {
                    key: value for name, mean in means_of(setting).items() for key, value in _errors(name, mean).items()
                },
                "runs": [{"run": str(run.run), "seed": run.seed, **run.evaluation.to_dict()} for run in setting.runs],
            }
            for setting in comparison.settings
        ],
        "groups": [_group_as_dict(group) for group in comparison.groups],
        "notes": list(comparison.notes),
        "failed": dict(comparison.failed),
        "page": None if comparison.page is None else str(comparison.page),
    }


def _group_as_dict(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "settings": [one.letter for one in group.settings],
        "baseline": group.settings[0].letter,
        "metric": group.metric,
        "best": group.best.letter,
        "not_told_apart": [one.letter for one in group.rivals],
        "differences": {
            key: {
                name: {**_errors("difference", one.mean), "p": one.p, "p_adjusted": one.p_adjusted, "pairs": one.seeds}
                for name, one in these.items()
            }
            for key, these in group.differences.items()
        },
    }


def _errors(name: str, mean: CrossedMean) -> dict[str, float | None]:
    return {name: _finite(mean.mean), f"{name}_stderr": _finite(mean.stderr)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
