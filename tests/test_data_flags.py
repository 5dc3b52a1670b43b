"""The data flags, which training, prediction and the check of a folder share."""

import argparse

import pytest

from datasets.flags import HelpFormatter, add_data_flags, add_store_dir, resolve_data_flags
from datasets.labels import DATASETS
from datasets.readers import CsvOptions, csv_options
from training.flags import parse_args


def data_flags(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    add_data_flags(parser.add_argument)
    add_store_dir(parser.add_argument)
    args = parser.parse_args(argv)
    resolve_data_flags(parser, args)
    return args


@pytest.mark.parametrize("dataset", DATASETS)
def test_training_has_the_same_defaults(dataset):
    args = data_flags("--dataset", dataset)
    assert (
        vars(args).items() <= vars(parse_args(["--dataset", dataset, "--patch_size", "32"])).items()
    )
    assert args.data_path == f"./{dataset}" and args.resize == DATASETS[dataset].resize
    assert csv_options(args) == CsvOptions([], [], False, None)


@pytest.mark.parametrize("ends", [("1", "0"), ("1", "1"), ("0", "inf"), ("nan", "1")])
def test_a_scale_without_a_range_is_refused(capsys, ends):
    for parse in (lambda *argv: parse_args(list(argv)), data_flags):
        with pytest.raises(SystemExit):
            parse("--dataset", "csv", "--csv", "t.csv", "--score_range", *ends)
        assert "--score_range: LOW must be below HIGH" in capsys.readouterr().err


def test_help_shows_a_default_only_if_there_is_one(capsys):
    with pytest.raises(SystemExit):
        data_flags("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: koniq-10k)" in said and "(default: pixel_store)" in said
    assert "(default: 0.1 for biq2021, else 0)" in said and "512 384" in said
    for nothing in ("None", "False", "[]"):
        assert f"(default: {nothing})" not in said
