"""How numbers and conditions are written, in every output of the report."""

import math
import re

from datasets.labels import DATASETS
from experiment import CONFIGURATIONS, RESNET50
from reporting.statistics import Statistics, spread
from resampling import Interval


def decimal(x: float | None, digits: int = 4, sign: bool = False) -> str:
    """'0.9012', or '+0.9012' with `sign`; '-' for None, NaN and infinity."""
    if x is None or not math.isfinite(x):
        return "-"
    return f"{round(x, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no '-0.0000'


def percent(x: float, sign: bool = True) -> str:
    """'+1.23%' for 0.0123."""
    return f"{decimal(100 * x, 2, sign)}%" if math.isfinite(x) else "-"


def p_value(p: float) -> str:
    return "-" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def at_most(x: float, digits: int = 4) -> str:
    """Rounded up, so that what is smaller than x is smaller than what is shown."""
    return decimal(math.ceil(x * 10**digits) / 10**digits, digits) if math.isfinite(x) else "-"


def bounds(x: Interval, digits: int = 4, sign: bool = False) -> str:
    """'[0.8712, 0.9012]', or 'undefined (reason)'."""
    if not math.isfinite(x.low + x.high):
        return f"undefined ({x.reason})"
    return f"[{decimal(x.low, digits, sign)}, {decimal(x.high, digits, sign)}]"


def digits_for(s: Statistics) -> int:
    """Digits that the intervals support: one more than the first digit that they leave open.

    Of the SRCCs of the configurations: 3 if the intervals are 0.02 wide, as of 2,000 images.
    """
    return digits_of([f["srcc_interval"] for f in s.configurations.values()])


def digits_of(intervals: list[Interval], most: int = 4) -> int:
    """Digits that the middle one of these intervals supports, as `digits_for` says."""
    widths = sorted(x.high - x.low for x in intervals if 0 < x.high - x.low < math.inf)
    if not widths:
        return most
    return min(most, max(2, 1 - math.floor(math.log10(widths[len(widths) // 2]))))


def with_spread(
    s: Statistics, values: list[float], separator: str = " +- ", digits: int = 4
) -> str:
    """'0.9012 +- 0.0021': mean (median over splits) and standard deviation over seeds."""
    deviation = spread(values)
    known = f"{separator}{deviation:.{digits}f}" if math.isfinite(deviation) else ""
    return decimal(float(s.middle(values)), digits) + known


def of_seeds(s: Statistics, count: int) -> str:
    """' (2 of 3 seeds)' if some are missing."""
    return f" ({count} of {len(s.seeds)} seeds)" if count < len(s.seeds) else ""


def collapses(s: Statistics) -> list[str]:
    """A sentence for each configuration whose attention has collapsed."""
    return [
        f"'{CONFIGURATIONS[m].title}': the attention has collapsed; this row does not test it "
        f"(effective number of stages {decimal(f['attention']['effective_stages'], 2)} of 4, "
        f"spread between images {decimal(f['attention']['stage_spread'])})."
        for m, f in s.configurations.items()
        if f["attention"] and f["attention"]["collapsed"]
    ]


def on_backbone(s: Statistics, text: str) -> str:
    """A sentence of the experiment about ResNet-50, about the backbone of these runs."""
    if s.backbone == RESNET50:
        return text
    for words in ("a ResNet-50", "ResNet-50", "a CNN", "the CNN"):
        text = text.replace(words, s.backbone)
    return text


def listed(values: list) -> str:
    return ", ".join(map(str, values))


def is_published(config: dict) -> bool:
    """Whether the numbers of images are those of a split that the literature uses."""
    known = DATASETS.get(config["flags"]["dataset"])
    return known is not None and tuple(config["images"].values()) in known.published


def capitalised(title: str) -> str:
    """'+ Multi-scale' for '+ multi-scale'."""
    return re.sub(r"^(\+ )?[a-z]", lambda found: found[0].upper(), title)


# As their authors write them; another data set is called by its name here.
NAMES = {
    "koniq-10k": "KonIQ-10k",
    "biq2021": "BIQ2021",
    "spaq": "SPAQ",
    "kadid-10k": "KADID-10k",
    "agiqa-3k": "AGIQA-3K",
    "live-challenge": "LIVE Challenge",
    "live": "LIVE",
    "csiq": "CSIQ",
    "tid2013": "TID2013",
    "bid": "BID",
    "csv": "a table of our own",
}


def data_set_name(s: Statistics) -> str:
    """The data set in a sentence that people read: 'BIQ2021'."""
    config = s.runs[0].config
    if config.get("demo"):
        return "the demo's synthetic scenes (not KonIQ-10k)"
    return NAMES.get(config["flags"]["dataset"], config["flags"]["dataset"])


def data_set(s: Statistics) -> str:
    config = s.runs[0].config
    if config.get("demo"):
        return "the demo's synthetic scenes (not KonIQ-10k)"
    other = "" if is_published(config) else " (not the counts of a published split)"
    return config["flags"]["dataset"] + other
