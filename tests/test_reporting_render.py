"""The templates: what is special in Markdown, HTML and LaTeX arrives as it was meant."""

import html
import re
import shutil
import subprocess

import pytest

from report_runs import MODELS, change_record, write_five, write_run, write_three
from reporting.answer import Answer, Step
from reporting.page import webpage
from reporting.parts import Report, Section, Verdict
from reporting.render import latex, latex_escaped, markdown, markdown_escaped
from reporting.runs import read_runs
from reporting.statistics import Statistics

SPECIAL = r"a_b & 5% <b>|x|</b> {$1} #2 ~ ^ \end [0.1, 0.2] *c* `d` <0.001 &amp; \"e\""


@pytest.fixture
def special():
    section = Section(SPECIAL, [SPECIAL, "n"], [[SPECIAL, "1"], ["b", "2"]], [SPECIAL])
    section.notes = [SPECIAL]
    answer = Answer(SPECIAL, SPECIAL, [Step(SPECIAL, SPECIAL)])
    return Report(SPECIAL, answer, Verdict(f"{SPECIAL}.", []), [SPECIAL], [section])


def test_names_are_escaped_for_latex():
    assert latex_escaped(r"a_b & 5% \x") == r"a\_b \& 5\% \textbackslash{}x"
    assert latex_escaped('{$1} #2 ~^<>|"') == (
        r"\{\$1\} \#2 \textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
        "''"
    )


def test_names_are_escaped_for_html(special):
    page = webpage(special)
    assert "<b>" not in page and "&amp;amp;" in page
    for tag, count in (("h1", 1), ("li", 1), ("h2", 2), ("th", 4), ("td", 2)):
        assert len(re.findall(rf"<{tag}[ >]", page)) == count
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page)]
    assert cells == [SPECIAL, "n", SPECIAL, "1", "b", "2"]


def test_the_page_has_minus_signs_and_definitions():
    rows = [["a - b", "-0.12", "0.9 +- 0.1", "[-0.1, +0.2]"], ["exp1-2", "2026-01-02", "-", "-3%"]]
    section = Section("Heading", ["", "SRCC", "p (Holm)", "other"], rows)
    page = webpage(Report("Title", Answer("Yes."), Verdict("Verdict.", []), [], [section]))
    minus = "\N{MINUS SIGN}"
    plus_minus = "0.9 \N{PLUS-MINUS SIGN} 0.1"
    for cell in (f"{minus}0.12", plus_minus, f"[{minus}0.1, +0.2]", f"{minus}3%"):
        assert f"<td>{cell}</td>" in page
    assert ">a - b<" in page and ">exp1-2<" in page and ">2026-01-02<" in page and ">-<" in page
    assert page.count("<abbr ") == 2 and 'title="Spearman' in page


def test_names_are_escaped_for_markdown(special):
    assert markdown_escaped("a|b") == r"a\|b"
    assert markdown_escaped("<0.001 of exp1_baseline.jsonl [1, 2]") == (
        "<0.001 of exp1_baseline.jsonl [1, 2]"
    )
    assert markdown_escaped("*a* `b` _c_ <d> [e](f) &lt; g & h") == (
        r"\*a\* \`b\` \_c\_ \<d> [e\](f) &amp;lt; g & h"
    )
    lines = markdown(special).splitlines()
    table = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert [len(cells) for cells in table] == [4] * 4  # a header, a rule, and two rows
    assert [c.strip() for c in table[3]] == ["", "b", "2", ""]


def test_a_report_in_markdown_keeps_its_blocks_apart():
    sections = [
        Section("One", ["", "SRCC"], [["a", "0.9"]], ["First.", "Second."]),
        Section("Two", paragraphs=["Third."]),
    ]
    answer = Answer("Yes.", "By 1%.", [Step("Do this.", "bash a_*.sh"), Step("Or that.")])
    verdict = Verdict("Verdict.", ["Remark."])
    report = Report("Title", answer, verdict, ["a problem", "another"], sections)
    assert markdown(report) == (
        "# Title\n\n**Yes.** By 1%.\n\nVerdict. Remark.\n\nDo this.\n\n"
        "```bash\nbash a_*.sh\n```\n\nOr that.\n\n"
        "## Problems\n\n- a problem\n- another\n\n## One\n\n"
        "|  | SRCC |\n| --- | --- |\n| a | 0.9 |\n\nFirst.\n\nSecond.\n\n## Two\n\nThird.\n"
    )


@pytest.mark.parametrize(
    "case", ["one seed", "several seeds", "controls", "splits", "undefined", "failed"]
)
def test_the_latex_compiles(tmp_path, case):
    logs = tmp_path / "logs"
    for seed in (1,) if case in ("one seed", "undefined") else (1, 2, 3):
        split = {"split": "random", "split_seed": seed} if case == "splits" else {}
        write_three(logs, suffix=f"_seed{seed}", seed=seed, **split)
        if case == "controls":
            write_five(logs, suffix=f"_seed{seed}", seed=seed, stages=(1000, 1, 1, 1))
    if case == "undefined":
        csv = logs / "exp2_multiscale_seed1_predictions.csv"
        csv.write_text(re.sub(r",[-.\d]+\n", ",50.0\n", csv.read_text()))
    if case == "failed":
        for record in logs.glob("exp3*.jsonl"):
            record.unlink()
    change_record(logs, "exp1_baseline_seed1", lambda config, _: config.update(demo=True))
    runs = read_runs([logs])
    s = Statistics(runs.finished, resamples=400, seed=0)
    table, paragraph = (latex(f"{name}.tex", s, runs) for name in ("table", "paragraph"))
    rows = 6 if case == "controls" else 4
    assert table.count(r"\\") == rows and r"\toprule" in table and "nan" not in table + paragraph
    for delimiter in ("<<", ">>", "<%", "%>"):
        assert delimiter not in table + paragraph
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    body = "\n\n".join([table, paragraph, latex_escaped(SPECIAL)])
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    (tmp_path / "document.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_what_is_undefined_is_dashes_in_latex(tmp_path):
    for name, model in zip(("one", "two"), MODELS):
        write_run(tmp_path, name, model, 9)
    csv = tmp_path / "two_predictions.csv"
    csv.write_text(re.sub(r",[-.\d]+\n", ",50.0\n", csv.read_text()))
    runs = read_runs([tmp_path])
    table = latex("table.tex", Statistics(runs.finished, resamples=400, seed=0), runs)
    table = " ".join(table.split())
    assert r"+ Multi-scale & -- [--, --] & -- [--, --] & -- [--, --] & " in table
