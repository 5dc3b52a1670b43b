"""What a run shows at its end."""

from training.records import UNDEFINED, best_epoch, closing_lines


def test_closing_lines_name_three_choices():
    epochs = [
        {"epoch": 1, "val_srcc": 0.8, "test_srcc": 0.70004, "test_plcc": 0.6},
        {"epoch": 2, "val_srcc": 0.7, "test_srcc": 0.9, "test_plcc": 0.91},
        {"epoch": 3, "val_srcc": None, "test_srcc": 0.85, "test_plcc": 0.8},
    ]
    lines = closing_lines(epochs).splitlines()
    assert lines[0].startswith("Best Test SRCC: 0.9000  (epoch 2, chosen on the test images")
    assert lines[1].startswith("Best Test PLCC: 0.9100  (epoch 2,")
    assert lines[2].startswith("Validation-Chosen Test SRCC: 0.7000  (epoch 1, ")
    assert lines[4].startswith("Last Test SRCC: 0.8500  (epoch 3, ")


def test_constant_predictions_are_undefined_and_never_the_best():
    constant = {"epoch": 1, "test_srcc": None, "test_plcc": None}
    fine = {"epoch": 2, "test_srcc": -0.1, "test_plcc": -0.1}
    assert best_epoch([constant, fine], "test") is fine
    lines = closing_lines([constant]).splitlines()
    assert lines[0] == f"Best Test SRCC: undefined ({UNDEFINED})"
    assert "No validation images: no epoch is chosen by them." in lines
