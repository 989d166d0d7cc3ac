"""The records of runs, beside each other."""

from dataclasses import asdict

import numpy as np
import pytest

from gpt2lab import export, read_curves
from gpt2lab.errors import LabError
from gpt2lab.training import runs
from gpt2lab.training.curves import RunCurves
from gpt2lab.training.runs import Metric
from gpt2lab.widgets import Curves

OLD = Metric(0, 0, "validation", 4.5, 0.0, 1.0)
NEW = Metric(4, 400, "train", 4.25, 1e-3, 3.0, 1.5, 200.0, 2**30, 0.5, None)


@pytest.fixture
def folder(tmp_path):
    for name, rate in (("first", 1e-3), ("second", 2e-3)):
        made = runs.new_run(tmp_path, {"model": "builtin", "data": "sample", "steps": 8, "learning_rate": rate}, name)
        for metric in (OLD, NEW):
            known = {key: value for key, value in asdict(metric).items() if value is not None}
            runs.append_line(made / "metrics.jsonl", known)
    runs.write_json(tmp_path / "first" / "config.json", runs.read_config(tmp_path / "first") | {"train_tokens": 200})
    return tmp_path


def test_records_are_read_by_id_and_by_folder(folder):
    found = read_curves(["first", "second"], folder)
    assert found == read_curves([folder / "first", folder / "second"])
    assert [run.metrics for run in found.runs] == [(OLD, NEW)] * 2
    assert [run.epoch(NEW) for run in found.runs] == [2.0, None]
    assert found.differences().rows == [("learning_rate", 1e-3, 2e-3)]


def test_table_and_arrays_hold_every_number(folder):
    found = read_curves(["first", "second"], folder)
    head, rows = found.table()
    assert dict(zip(head, rows[1])) == {"run": "first", "epoch": 2.0, **asdict(NEW)}
    arrays = found.arrays()
    assert arrays["loss"].tolist() == [4.5, 4.25] * 2 and arrays["split"].tolist() == ["validation", "train"] * 2
    assert np.isnan(arrays["grad_norm"]).tolist() == [True, False] * 2
    assert export(found, "csv").count(b"\n") == 5 and export(found, "png").startswith(b"\x89PNG")


def test_no_run_too_many_and_unknown_ones_are_refused(folder):
    for asked in ([], ["first"] * 7, ["third"], ["../first"], [folder / "nowhere"]):
        with pytest.raises(LabError):
            read_curves(asked, folder)


def test_the_widget_follows_runs_until_they_end(folder):
    widget = Curves(["first"], folder)
    runs.append_line(folder / "first" / "metrics.jsonl", asdict(Metric(8, 800, "validation", 4.0, 0.0, 5.0)))
    assert widget.update() and widget.data["runs"][0]["columns"]["loss"] == [4.5, 4.25, 4.0]
    runs.write_status(folder / "first", runs.RunStatus("finished", 8, 8, **runs.this_process()))
    widget.watch(seconds=0.01)
    assert widget.data["runs"][0]["state"] == "finished"
    assert not Curves(read_curves("first", folder)).update()  # what was read once stays


def test_a_run_that_measured_nothing_has_an_empty_picture(tmp_path):
    runs.new_run(tmp_path, {"model": "builtin", "data": "sample"}, "new")
    found = read_curves("new", tmp_path)
    assert isinstance(found, RunCurves) and found.table().rows == [] and export(found, "svg")
