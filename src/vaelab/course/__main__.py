"""Work on the course: check chapters, write down what they quote, make notebooks of them.

python -m vaelab.course check [CHAPTER ...] [--fast]
python -m vaelab.course results [CHAPTER ...]
python -m vaelab.course notebooks -o FOLDER [--student | --solution] [CHAPTER ...]
"""

import argparse
import sys
from pathlib import Path

from vaelab.course import chapters
from vaelab.errors import VaelabError
from vaelab.files import write_text


def main() -> int:
    """Run the command; 0 if all is well, 1 if a chapter has faults, 2 after wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m vaelab.course", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["check", "results", "notebooks"])
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="a number or a name; all of them by default")
    parser.add_argument("--fast", action="store_true", help="check: the short run, as with FAST=1")
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="notebooks: where to write them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--student", action="store_true", help="notebooks: only those without solutions")
    which.add_argument("--solution", action="store_true", help="notebooks: only those with solutions")
    args = parser.parse_intermixed_args()  # options may stand before chapters
    if (args.command == "notebooks") != (args.out is not None):
        parser.error("-o FOLDER belongs to notebooks, and notebooks needs it")
    try:
        files = [chapters.find_chapter(name) for name in args.chapters] or chapters.chapter_files()
        if args.command == "notebooks":
            kinds: list[chapters.Kind] = ["student", "solution"]
            kinds = kinds[: 1 if args.student else 2][1 if args.solution else 0 :]
            _write_notebooks(files, args.out, kinds)
            return 0
        return max([_run(file, args.command, args.fast) for file in files], default=0)
    except VaelabError as error:
        print(f"vaelab.course: {error}", file=sys.stderr)
        return error.exit_code


def _run(file: Path, command: str, fast: bool) -> int:
    if command == "results":
        outcomes = chapters.write_results(file)
    else:
        outcomes = (chapters.check(file, "fast" if fast else "full"),)
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    seconds = " and ".join(f"{outcome.seconds:.0f} s" for outcome in outcomes)
    print(f"{file.stem}: {len(outcomes[0].numbers)} numbers, {seconds}, {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return bool(faults)


def _write_notebooks(files: list[Path], folder: Path, kinds: list[chapters.Kind]) -> None:
    import nbformat

    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for file in files:
            path = folder / kind / f"{file.stem}.ipynb"
            write_text(path, nbformat.writes(chapters.notebook(file, kind)) + "\n")
            print(path)


if __name__ == "__main__":
    sys.exit(main())
