"""What missing values cost: values are hidden, two trainings are scored on the same targets."""

import pytest
from conftest import random_values

from scripts.paper import measure_missing


def test_two_trainings_are_scored_on_what_was_left_and_on_what_was_hidden(registered, tmp_path):
    folder = registered(random_values(120, 3))
    assert measure_missing.main([
        "--data_name", "Tiny", "--data_dir", str(folder), "--share", "0.2", "--history_len", "6", "--predict_len", "4",
        "--batch_size", "64", "--mean_epochs", "1", "--diffusion_epochs", "1", "--nsample", "4", "--test_windows", "6",
        "--device", "cpu", "--save_dir", str(tmp_path), "--report", str(tmp_path / "missing.md")]) == 0
    text = (tmp_path / "missing.md").read_text()
    assert "--data_name Tiny --share 0.2 " in text and "--history_len 6" in text
    rows = [[cell.strip() for cell in line.strip("| ").split("|")]
            for line in text.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows[2:]] == [[variant, part] for variant in ("complete", "mask")
                                             for part in ("left", "hidden")]
    assert all(float(row[2]) > 0 for row in rows[2:]) and rows[2][2:] != rows[3][2:]


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="--share 1.2: choose a share between 0 and 1"):
        measure_missing.main(["--share", "1.2"])
