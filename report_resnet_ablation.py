"""What the numbers mean: tables, intervals, figures and a verdict from the logs of an ablation.

    python3 report_resnet_ablation.py logs/resnet_ablation_20260102_030405
    python3 report_resnet_ablation.py LOG_DIR LOG_DIR... --output report
    python3 report_resnet_ablation.py LOG_DIR --watch

reads the record and the predictions of each run, recomputes every figure, prints table.txt and the
verdict, and writes table.txt, report.md, report.html (one file, figures inside), table.tex,
paragraph.tex, results.json and figures/ (PNG and PDF) into the (first) folder. With runs on several
backbones, this is written into a folder for each, and above them a summary over backbones. It needs
no GPU and no torch; about half a minute. --watch writes progress.html instead, again and again,
while the runs train.

Exit status: 0, with a note on stderr for everything that does not add up; 1 if there is no finished
run, if runs cannot be compared, or if one has a configuration that experiment.py does not have.
"""

import argparse
import sys
from pathlib import Path

import resampling
from console import command
from errors import ReportError
from files import check_folder_for, write_atomically
from reporting import backbones, scatter
from reporting.backbones import Backbones
from reporting.figures import draw_backbones, draw_figures, prepare, save
from reporting.page import Exhibits, webpage
from reporting.photographs import collect
from reporting.progress_page import watch
from reporting.render import (
    backbones_json,
    backbones_latex,
    latex,
    markdown,
    plain_table,
    results_json,
)
from reporting.runs import Runs, check_comparable, read_runs
from reporting.statistics import Statistics
from reporting.tables import ResultTable, result_table
from reporting.text import Verdict, write_report


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description="What the numbers mean: tables, intervals, figures and a verdict."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="LOG_DIR", help="of an ablation")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the first LOG_DIR")
    parser.add_argument("--data_path", metavar="DIR", help="photographs, if they have been moved")
    parser.add_argument("--resamples", type=int, default=resampling.RESAMPLES, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap")
    parser.add_argument(
        "--leave_out",
        action="append",
        default=[],
        metavar="BACKBONE",
        help="show this backbone, but leave it out of the summary over backbones (repeatable)",
    )
    parser.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=0,
        metavar="PID",
        help="no report: keep progress.html up to date while the runs train, until all have ended "
        "or the process PID has",
    )
    args = parser.parse_args()
    if args.resamples < 400:  # with 100 no p could be significant after Holm's correction
        parser.error("--resamples: at least 400")
    output = args.output or args.folders[0]
    if args.watch is not None:
        return watch(args.folders, output, args.watch)
    try:
        runs = read_runs(args.folders)
        for folder in (output, output / "figures"):
            check_folder_for("--output", folder)
        if not runs.finished:
            report_nothing(runs, args.folders, output)
        check_comparable(runs.finished)
        parts = runs.by_backbone()
        if len(parts) == 1:
            table, verdict = report_backbone(runs, args, output)[1:]
        else:
            table, verdict = report_backbones(runs, parts, args, output)
    except ValueError as error:
        raise ReportError(str(error)) from error

    print(plain_table(table, verdict))
    for remark in verdict.remarks:
        print(remark)
    files = "report.md, report.html, table.txt, table.tex, paragraph.tex, figures/"
    if len(parts) > 1:
        files = f"report.md, report.html, table.txt, backbones.tex, figures/; {', '.join(parts)}/"
    print(f"The report is in {output}: {files}")
    for problem in [*(run.reason for run in runs.failed), *runs.wrong]:
        print(f"note: {problem}", file=sys.stderr)
    for run in runs.unknown:
        print(f"error: {run.reason}", file=sys.stderr)
    return 1 if runs.unknown else 0


def report_backbone(
    runs: Runs, args: argparse.Namespace, output: Path, above: str = ""
) -> tuple[Statistics, ResultTable, Verdict]:
    """Write the report of one backbone; above: the address of the page over all backbones."""
    output.mkdir(parents=True, exist_ok=True)
    statistics = Statistics(runs.finished, resamples=args.resamples, seed=args.seed)
    figures = draw_figures(statistics, output / "figures", args.data_path)
    report = write_report(statistics, runs, figures)
    album = collect(statistics, args.data_path)
    exhibits = Exhibits(album, scatter.draw(statistics, album))
    table = result_table(statistics, runs)
    for name, text in (
        ("table.txt", plain_table(table, report.verdict)),
        ("report.md", markdown(report)),
        ("report.html", webpage(report, exhibits, above=above)),
        ("table.tex", latex("table.tex", statistics, runs)),
        ("paragraph.tex", latex("paragraph.tex", statistics, runs)),
        ("results.json", results_json(statistics, runs.problems)),
    ):
        write_atomically(output / name, text)
    return statistics, table, report.verdict


def report_backbones(
    runs: Runs, parts: dict[str, Runs], args: argparse.Namespace, output: Path
) -> tuple[ResultTable, Verdict]:
    """Write the report of each backbone in a folder of its name, and that over all of them."""
    for name in args.leave_out:
        if name not in parts:
            raise ReportError(f"--leave_out {name}: there are runs of {', '.join(parts)}")
    each, tables = {}, {}
    for name, part in parts.items():
        if part.finished:
            each[name], tables[name], _ = report_backbone(
                part, args, output / name, "../report.html"
            )
        else:
            tables[name] = result_table(None, part)
    found = Backbones(each, args.leave_out)
    prepare(output / "figures")
    figure = save(*draw_backbones(found), output / "figures" / "backbones")
    report = backbones.write_report(found, runs, figure)
    table = backbones.grouped(tables, each)
    for name, text in (
        ("table.txt", plain_table(table, report.verdict)),
        ("report.md", markdown(report)),
        ("report.html", webpage(report)),
        ("backbones.tex", backbones_latex(found)),
        ("results.json", backbones_json(found, runs.problems)),
    ):
        write_atomically(output / name, text)
    return table, report.verdict


def report_nothing(runs: Runs, folders: list[Path], output: Path) -> None:
    """Print and write table.txt of failed runs, then raise ReportError: no run is finished."""
    if runs.failed:
        output.mkdir(parents=True, exist_ok=True)
        table = plain_table(result_table(None, runs), None)
        write_atomically(output / "table.txt", table)
        print(table)
    problems = "".join(f"\n  {problem}" for problem in runs.problems)
    raise ReportError(f"{', '.join(map(str, folders))}: no finished run to report{problems}")


if __name__ == "__main__":
    sys.exit(main())
