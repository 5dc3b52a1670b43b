"""The answer as a person would say it, and what to do next, as commands."""

import argparse
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiment import (
    BASELINE,
    BOTH,
    BOUNDS,
    COLLAPSED,
    CONFIGURATIONS,
    FULL,
    HYPOTHESES,
    LOWERED,
    MODELS,
    ONE_RUN,
    RESNET50,
    UNDECIDED,
)
from reporting.formats import data_set_name, decimal, digits_for, listed, on_backbone
from reporting.runs import Runs, continued, further_seeds, saved_arguments
from reporting.statistics import Statistics, relative
from resampling import Interval

# CNNs of different families, which a first look at other backbones may take.
OTHER_BACKBONES = (
    *(RESNET50, "resnet18", "convnext_tiny", "regnety_008", "tf_efficientnet_lite0"),
    *("mobilenetv3_large_100", "resnet101", "convnext_small"),
)
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass
class Step:
    """What to do next: a sentence, and the command if there is one."""

    sentence: str
    command: str = ""


@dataclass
class Answer:
    sentence: str
    evidence: str = ""  # the number behind it, and what it was measured on
    steps: list[Step] = field(default_factory=list)


def title(s: Statistics) -> str:
    """The question."""
    networks = {CONFIGURATIONS[m].flags["model"] for m in s.models}
    if MODELS[0] in networks:
        return on_backbone(s, "Do multi-scale fusion and channel attention help a ResNet-50?")
    if networks == {"hyperiqa"}:
        return "How well does HyperIQA do?"
    other = next(m for m in s.models if m != "hyperiqa")
    name = CONFIGURATIONS[other].title.partition(",")[0]
    return f"Do multi-scale fusion and channel attention help {name}?"


def answer(s: Statistics, runs: Runs) -> Answer:
    return Answer(sentence(s), evidence(s), next_steps(s, runs))


def sentence(s: Statistics) -> str:
    """The answer to the question of `title`, of the leading selection's figures."""
    if s.models == ["hyperiqa"]:
        srcc = decimal(s.configurations["hyperiqa"]["srcc"], digits_for(s))
        return f"HyperIQA reaches an SRCC of {srcc} on {data_set_name(s)}."
    if not {FULL, BASELINE} & set(s.models):
        return of_other_networks(s)
    gain = s.gain
    if gain is None:
        missing = [CONFIGURATIONS[m].title for m in (BASELINE, FULL) if m not in s.models]
        what = f"'{missing[0]}' has no finished run" if missing else "no seed has both models"
        return f"We can't tell yet: {what}."
    if not math.isfinite(gain.low + gain.high):
        return f"We can't tell: {gain.reason}."
    if s.verdict == ONE_RUN:
        once = "each model has been trained only once"
        if len(s.seeds) > 1:
            once = "only one seed has both models"
        return f"We can't tell yet: {once}."
    network = on_backbone(s, "ResNet-50")
    size = in_percent(abs(gain.value), gain)
    said = {
        HYPOTHESES[2]: f"Yes: together they raise the SRCC of {network} by {size}",
        HYPOTHESES[1]: f"A little: together they raise the SRCC of {network} by {size}",
        HYPOTHESES[0]: f"Hardly: they raise the SRCC of {network} by less than 0.3%, if at all",
        LOWERED: f"No: together they lower the SRCC of {network} by {size}",
        UNDECIDED: f"We can't tell yet: their effect on the SRCC lies {between(gain)}",
    }[s.verdict]
    full = s.configurations[FULL]["attention"]
    if full and full["collapsed"]:
        said += ", but the attention collapsed, so it was not tested"
    return f"{said}."


def of_other_networks(s: Statistics) -> str:
    """The answer for models whose ablation has no verdict: SMART-IQA alone."""
    both = next((c for c in s.comparisons if c["label"].startswith("both improvements on")), None)
    if both is None:
        return "We can't tell yet: the model with both improvements, or without, has no run."
    if len(both["each"]) == 1:
        return "We can't tell yet: each model has been trained only once."
    d = both["difference"]
    if both["p_holm"] < 0.05:
        word = "Yes: together they raise" if d.value > 0 else "No: together they lower"
        return f"{word} its SRCC by {decimal(abs(d.value), digits_for(s))}."
    return "We can't tell yet: the difference in SRCC is not significant."


def evidence(s: Statistics) -> str:
    """'+1.6% SRCC (95% interval -2.4% to +5.9%), on 500 test images of BIQ2021, five seeds.'"""
    selection = {
        "chosen by val": "the epoch chosen on the validation images",
        "last epoch": "after the last epoch",
    }[s.selection]
    count = len(s.common_seeds(FULL, BASELINE)) or len(s.seeds)
    seeds = "one seed" if count == 1 else f"{in_words(count)} seeds"
    splits = f", {in_words(s.splits)} random splits" if s.splits > 1 else ""
    where = f"{s.images:,} test images of {data_set_name(s)}, {seeds}{splits}, {selection}"
    gain = s.gain
    if gain is None or not math.isfinite(gain.low + gain.high):
        model = next((m for m in (FULL, BASELINE) if m in s.models), s.models[-1])
        found, digits = s.configurations[model], digits_for(s)
        ends = [decimal(x, digits) for x in found["srcc_interval"][1:3]]
        return (
            f"The SRCC of '{CONFIGURATIONS[model].title}' is {decimal(found['srcc'], digits)} "
            f"(95% interval {' to '.join(ends)}): on {where}."
        )
    value, low, high = (in_percent(x, gain, sign=True) for x in (gain.value, gain.low, gain.high))
    return (
        f"Multi-scale fusion and channel attention change the SRCC of the baseline by {value} "
        f"(95% interval {low} to {high}): on {where}."
    )


def in_percent(x: float, interval: Interval, sign: bool = False) -> str:
    """With the digits that the interval supports: '1.6%', or '0.42%' if it is narrow."""
    digits = 2 if interval.high - interval.low < 0.01 else 1
    return f"{decimal(100 * x, digits, sign)}%"


def between(gain: Interval) -> str:
    """'between a loss of 2.4% and a gain of 5.9%'."""
    ends = [
        f"a {'loss' if end < 0 else 'gain'} of {in_percent(abs(end), gain)}"
        for end in (gain.low, gain.high)
    ]
    return f"between {' and '.join(ends)}"


def in_words(count: int) -> str:
    return WORDS[count] if count < len(WORDS) else f"{count:,}"


def next_steps(s: Statistics, runs: Runs) -> list[Step]:
    """The most useful thing to do now; first of all, to finish what failed."""
    steps = []
    if runs.failed:
        steps.append(finish(runs))
    networks = {CONFIGURATIONS[m].flags["model"] for m in s.models}
    if MODELS[0] in networks and not steps and not {FULL, BASELINE} <= set(s.models):
        steps.append(Step("Train the other configurations too.", continued(runs.folders)))
    if not {FULL, BASELINE} <= set(s.models):
        return steps
    full = s.configurations[FULL]["attention"]
    if full and full["collapsed"]:
        return [*steps, without_collapse(s, runs)]
    if s.gain is None or not math.isfinite(s.gain.low + s.gain.high):
        return steps
    if s.verdict == ONE_RUN and len(s.seeds) == 1:
        return [*steps, more_seeds(runs, s.seeds, "Train each model with two more seeds.")]
    if s.verdict == UNDECIDED:
        return [*steps, to_decide(s, runs)]
    if s.verdict != ONE_RUN and s.backbone == RESNET50 and s.splits == 1:
        names = ",".join(OTHER_BACKBONES[:4])
        command = continued(runs.folders, "--backbones", names)
        text = "See whether it holds on other backbones."
        steps.append(Step(text, command or new_ablation(s, "--backbones", names)))
    return steps


def finish(runs: Runs) -> Step:
    count = len(runs.failed)
    text = (
        f"{in_words(count).capitalize()} run{' is' if count == 1 else 's are'} not finished: "
        "see Problems, then continue."
    )
    return Step(text, continued(runs.folders))


def more_seeds(runs: Runs, seeds: list[int], text: str, more: int = 2) -> Step:
    command = further_seeds(runs.folders, seeds, more)
    if command:
        return Step(text, command)
    new = listed([max(seeds) + i for i in range(1, more + 1)])
    return Step(
        f"Train the same configurations with further seeds ({new}) into another folder, and give "
        "report_resnet_ablation.py both folders."
    )


def to_decide(s: Statistics, runs: Runs) -> Step:
    """More seeds if they can decide it; more test images if those leave it open by themselves."""
    drawn = s.resampled((FULL, BASELINE), relative)
    error = math.nan if drawn is None else float(np.std(drawn))
    ends = [s.gain.value - 1.96 * error, s.gain.value + 1.96 * error]
    if np.isfinite(ends).all() and len({*np.searchsorted(BOUNDS, ends, "right")}) > 1:
        text = (
            f"More seeds alone will not decide it, because the {s.images:,} test images leave it "
            "open: repeat it on another data set."
        )
        other = "spaq" if s.runs[0].config["flags"]["dataset"] == "koniq-10k" else "koniq-10k"
        return Step(text, new_ablation(s, "--dataset", other, "--data_path", other))
    both = next(c for c in s.comparisons if c["label"] == BOTH)
    needed = both["seeds_needed"] or 0
    more = min(max(2, needed - len(s.seeds)), 2 * len(s.seeds))
    return more_seeds(runs, s.seeds, f"Train each model with {in_words(more)} more seeds.", more)


def without_collapse(s: Statistics, runs: Runs) -> Step:
    """Train so that the attention may attend: the same command with one flag changed."""
    flags = s.of_model[FULL][0].config["flags"]
    if s.configurations[FULL]["attention"]["effective_stages"] >= COLLAPSED[0]:
        flag, value = "--epochs", str(2 * flags["epochs"])
        text = f"Train for longer: after {flags['epochs']} epochs the weights hardly differ yet."
    elif flags.get("attention", "published") == "published":
        flag, value = "--attention", "scaled"
        text = "Train with the scaled attention, which does not collapse onto one stage."
    else:
        flag, value = "--lr_ratio", "1"
        text = "Train the new layers more slowly, so that the attention may keep several stages."
    saved = saved_arguments(runs.folders)
    if saved is None:
        return Step(text)
    folder, *arguments = saved
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag)
    _, others = parser.parse_known_args(arguments)
    command = shlex.join(["bash", "run_resnet_ablation.sh", *others, flag, value])
    return Step(text, command if Path.cwd() == Path(folder) else f"cd {folder} && {command}")


def new_ablation(s: Statistics, *flags: str) -> str:
    """The command of a new ablation with these seeds."""
    seeds = ",".join(map(str, s.seeds))
    return shlex.join(["bash", "run_resnet_ablation.sh", *flags, "--seeds", seeds])
