"""The figures of a record for TensorBoard, which is optional."""

import sys

import pytest

import train_resnet_improved as train
from conftest import SMALL, TINY
from errors import RunError
from training.flags import parse_args
from training.tensorboard import Board, check_tensorboard, numbers


def test_without_tensorboard_one_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="--tensorboard needs TensorBoard: pip install tensorboard"):
        check_tensorboard(tmp_path)


def test_without_the_flag_it_is_not_imported(koniq10k, tmp_path):
    board = Board(None, "run", [{"epoch": 1, "loss": 1.0}])
    board.show({"epoch": 2, "loss": 0.5})
    board.close()
    assert "tensorboard" not in sys.modules


def test_numbers_are_those_of_the_record():
    record = {"type": "epoch", "epoch": 3, "loss": 2.0, "test_srcc": 0.5, "val_srcc": None}
    record |= {"stage_weights": [0.1, 0.2, 0.3, 0.4], "lr_new": 1e-3}
    assert numbers(record) == {
        "loss": 2.0, "test/srcc": 0.5, "lr_new": 1e-3,
        "stage_weights/w1": 0.1, "stage_weights/w2": 0.2,
        "stage_weights/w3": 0.3, "stage_weights/w4": 0.4,
    }  # fmt: skip


def events(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, round(e.value, 4)) for e in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_resumed_run_has_each_epoch_once(koniq10k, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: it is optional")
    flags = [*TINY, "--backbone", SMALL, "--data_path", koniq10k, "--run_name", "run"]
    flags += ["--store_dir", tmp_path / "store", "--log_dir", tmp_path, "--save_model"]
    flags += ["--checkpoint_dir", tmp_path, "--tensorboard", tmp_path / "board"]
    (_, *epochs), _ = train.run(parse_args([*map(str, flags)]))
    wanted = [(record["epoch"], round(record["loss"], 4)) for record in epochs]
    assert events(tmp_path / "board" / "run")["loss"] == wanted
    train.run(parse_args([*map(str, flags), "--resume"]))  # finished: all epochs are written again
    assert events(tmp_path / "board" / "run")["loss"] == wanted


def test_a_board_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: it is optional")
    board = Board(tmp_path, "run", [])

    def full(*_):
        raise OSError(28, "No space left on device")

    board.writer.add_scalar = full
    for epoch in (1, 2):
        board.show({"epoch": epoch, "loss": 1.0})
    board.close()
    assert capsys.readouterr().err.count("note: --tensorboard: ") == 1
