"""What the numbers mean: tables, intervals, figures and a verdict from the logs of an ablation.

    python3 report_resnet_ablation.py logs/resnet_ablation_20260102_030405
    python3 report_resnet_ablation.py LOG_DIR LOG_DIR... --output report
    python3 report_resnet_ablation.py LOG_DIR --predictions TOPIQ=topiq.csv MANIQA=maniqa.csv
    python3 report_resnet_ablation.py --predictions TOPIQ=topiq.csv --data_path koniq-10k
    python3 report_resnet_ablation.py LOG_DIR --other_recipe OTHER_LOG_DIR
    python3 report_resnet_ablation.py LOG_DIR --watch

reads the record and the predictions of each run, recomputes every figure, prints table.txt and the
verdict, and writes table.txt, report.md, report.html (one file, figures inside), table.tex,
paragraph.tex, results.json and figures/ (PNG and PDF) into the (first) folder. With runs on several
backbones, this is written into a folder for each, and above them a summary over backbones. It needs
no GPU and no torch; about half a minute. --predictions puts other models' scores for the test
images beside the runs; without LOG_DIR the report is on them alone. --other_recipe says whether the
answer depends on how the models are trained. --watch writes progress.html instead, again and again,
while the runs train.

Exit status: 0, with a note on stderr for everything that does not add up; 1 if there is no finished
run, if runs cannot be compared, or if one has a configuration that experiment.py does not have.
"""

import argparse
import sys
from pathlib import Path

import resampling
from console import command
from datasets.labels import DATASETS
from errors import ReportError
from files import check_folder_for, write_atomically
from reporting import alone, analysis_text, backbones, cross_data_sets, other_recipe, scatter
from reporting.backbones import Backbones
from reporting.cross_data_sets import CrossDataSets
from reporting.figures import draw_backbones, draw_figures, prepare, save
from reporting.other_recipe import OtherRecipe
from reporting.page import Exhibits, webpage
from reporting.parts import Verdict
from reporting.photographs import collect
from reporting.predictions import read_predictions
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
from reporting.text import write_report


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description="What the numbers mean: tables, intervals, figures and a verdict.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="LOG_DIR", help="of an ablation")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: the first LOG_DIR, or else ./report"
    )
    parser.add_argument(
        "--data_path", metavar="DIR", help="photographs and labels, if they have been moved"
    )
    add_predictions_flags(parser)
    parser.add_argument(
        "--other_recipe",
        nargs="+",
        type=Path,
        default=[],
        metavar="LOG_DIR",
        help="the same ablation, trained by another recipe: does the answer depend on it?",
    )
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
    if not (args.folders or args.predictions):
        parser.error("give LOG_DIR, or --predictions NAME=FILE and --data_path DIR")
    if not (args.folders or args.data_path):
        parser.error("without LOG_DIR give the folder of the labels: --data_path DIR")
    for flag in ("cross_data_sets", "other_recipe"):
        if getattr(args, flag) and not args.folders:
            parser.error(f"--{flag} is for LOG_DIR")
    output = args.output or (args.folders[0] if args.folders else Path("report"))
    if args.watch is not None:
        if not args.folders:
            parser.error("--watch is for LOG_DIR")
        return watch(args.folders, output, args.watch)
    try:
        args.others = read_predictions(
            args.predictions, skip_others=args.skip_others, beside_runs=bool(args.folders)
        )
        if not args.folders:
            return report_alone(args, output)
        args.cross = read_cross(args)
        args.recipe = read_runs(args.other_recipe)
        if args.other_recipe and not args.recipe.finished:
            raise ReportError("--other_recipe: no finished run in these folders")
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
    unknown = [*runs.unknown, *args.recipe.unknown]
    for run in (*runs.failed, *args.recipe.failed):
        print(f"note: {run.reason}", file=sys.stderr)
    for problem in (*runs.wrong, *args.recipe.wrong):
        print(f"note: {problem}", file=sys.stderr)
    for run in unknown:
        print(f"error: {run.reason}", file=sys.stderr)
    return 1 if unknown else 0


def add_predictions_flags(parser: argparse.ArgumentParser) -> None:
    """Other models' predictions, and what a report on them alone is on."""
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="scores of another model for the same test images: a table with the columns image and "
        "score, on any scale, higher is better",
    )
    parser.add_argument(
        "--skip_others",
        action="store_true",
        help="leave out images of --predictions that are no test images here; without it they are "
        "an error",
    )
    parser.add_argument(
        "--cross_data_sets",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="what predict_resnet_improved.py --test_on has written to --output",
    )
    alone = parser.add_argument_group("a report on --predictions alone, without LOG_DIR")
    alone.add_argument(
        "--dataset", choices=sorted({*DATASETS} - {"csv"}), default="koniq-10k", help="the labels'"
    )
    alone.add_argument(
        "--split", choices=["auto", "json", "official", "random"], default="auto",
        help="which images are the test images, as in a training",
    )  # fmt: skip
    alone.add_argument(
        "--test_split", choices=["test", "all"], default="test", help="all: all images of the data"
    )


def read_cross(args: argparse.Namespace) -> CrossDataSets | None:
    """The tests on other data sets, if there are any."""
    if not args.cross_data_sets:
        return None
    tables = cross_data_sets.read_tests(args.cross_data_sets)
    return CrossDataSets(tables, resamples=args.resamples, seed=args.seed)


def report_alone(args: argparse.Namespace, output: Path) -> int:
    """Write the report on predictions alone, and print its tables."""
    for folder in (output, output / "figures"):
        check_folder_for("--output", folder)
    labels = alone.read_test_labels(
        {"dataset": args.dataset, "data_path": args.data_path, "split": args.split},
        test_split=args.test_split,
    )
    found = alone.analyse(args.others, labels, resamples=args.resamples, seed=args.seed)
    report = alone.write_report(found, args.others, labels, output / "figures")
    table = alone.plain_text(report)
    for name, text in (
        ("table.txt", table),
        ("report.md", markdown(report)),
        ("report.html", webpage(report)),
        ("results.json", alone.results_json(found, args.others, labels)),
    ):
        write_atomically(output / name, text)
    print(table)
    print(f"The report is in {output}: report.md, report.html, table.txt, results.json, figures/")
    return 0


def report_backbone(
    runs: Runs, args: argparse.Namespace, output: Path, above: str = ""
) -> tuple[Statistics, ResultTable, Verdict]:
    """Write the report of one backbone; above: the address of the page over all backbones."""
    output.mkdir(parents=True, exist_ok=True)
    statistics = Statistics(
        runs.finished,
        resamples=args.resamples,
        seed=args.seed,
        predictions=args.others,
        data_path=args.data_path,
    )
    figures = draw_figures(statistics, output / "figures", args.data_path)
    further = analysis_text.sections(statistics.analysis)
    if args.cross:
        further += cross_data_sets.sections(args.cross)
    recipe = compare_recipes(statistics, args)
    if recipe:
        further.append(other_recipe.section(recipe))
    report = write_report(statistics, runs, figures, further)
    if recipe:
        report.verdict.remarks.append(other_recipe.in_a_sentence(recipe))
    album = collect(statistics, args.data_path)
    exhibits = Exhibits(album, scatter.draw(statistics, album))
    table = result_table(statistics, runs)
    cross = args.cross and args.cross.figures()
    for name, text in (
        ("table.txt", plain_table(table, report.verdict)),
        ("report.md", markdown(report)),
        ("report.html", webpage(report, exhibits, above=above)),
        ("table.tex", latex("table.tex", statistics, runs)),
        ("paragraph.tex", latex("paragraph.tex", statistics, runs)),
        (
            "results.json",
            results_json(statistics, runs.problems, cross, recipe and recipe.figures()),
        ),
    ):
        write_atomically(output / name, text)
    return statistics, table, report.verdict


def compare_recipes(s: Statistics, args: argparse.Namespace) -> OtherRecipe | None:
    """The runs of --other_recipe on the backbone of these statistics beside them, if there are any.

    Raises ReportError if there are none, but runs on other backbones.
    """
    if not args.other_recipe:
        return None
    found = args.recipe.by_backbone().get(s.backbone)
    if not (found and found.finished):
        raise ReportError(f"--other_recipe: those folders have no finished run on {s.backbone}")
    return OtherRecipe(s, found)


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
