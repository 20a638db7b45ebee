"""The report of a study: tables, tests, pictures and a recommendation, from the files of finished runs.

    python -m jaxneg.report DIR... [--out DIR]

Searches every DIR for finished runs and writes report.md, report.html (one file, pictures inside), report.csv (every
interval) and the pictures to --out (default: the first DIR). A part that has no data is left out, with a line on why.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from jaxneg import files
from jaxneg.errors import InputError
from jaxneg.report import analysis, document, parts, plots
from jaxneg.report import read as runs


def write(folders: Sequence[str | pathlib.Path], out: str | pathlib.Path | None = None) -> pathlib.Path:
    """Writes the report of all finished runs in and below the folders. Returns the path of report.html.

    Raises InputError where there is no finished run, a file cannot be understood, or `out` cannot be written.
    """
    found, unfinished = runs.find_runs(folders)
    with files.claimed(out or folders[0]) as folder:
        blocks, intervals = [*parts._head(found, unfinished)], []
        for study in runs.studies(found):
            lines, osf_lines = (
                sorted(map(analysis.line, variants), key=lambda line: plots.method_order(line.label))
                for variants in (study.variants, study.osf_variants)
            )
            blocks += parts.study_blocks(study, lines, osf_lines, folder)
            intervals += parts.interval_rows(study, lines + osf_lines)
        files.write_csv(folder / "report.csv", intervals)
        for name, text in (
            ("report.md", document.markdown(blocks)),
            ("report.html", document.webpage("Negative sampling: report", blocks, folder)),
        ):
            with files.whole(folder / name) as temporary:
                temporary.write_text(text)
    return folder / "report.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    about = "The report of finished runs, from their files: tables, tests, pictures and a recommendation."
    parser = argparse.ArgumentParser(prog="python -m jaxneg.report", description=about)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders to search for finished runs (results.csv)")
    parser.add_argument("--out", metavar="DIR", help="folder for report.md, report.html and the pictures (first DIR)")
    given = parser.parse_args(arguments)
    try:
        path = write(given.folders, given.out)
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    print(f"report: {path}, and beside it report.md, report.csv and the pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
