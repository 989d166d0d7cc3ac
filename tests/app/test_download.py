import threading
import time

import pytest

from gpt2lab.app import download as module
from gpt2lab.app.download import Downloads, bar, missing_line, row_of
from gpt2lab.data import hub
from gpt2lab.data.hub import Download, Progress
from gpt2lab.errors import LabError


@pytest.fixture
def fetched(monkeypatch):
    """The downloads that were begun, and those that were broken off; each ends once `may_end` is set."""
    begun, closed, may_end = [], [], threading.Event()

    def steps(download):
        begun.append(download.name)
        try:
            for done in range(1, 10_000):
                yield Progress(done, 10_000, 100.0)
                if may_end.wait(0.01):
                    return
        except GeneratorExit:
            closed.append(download.name)
            raise

    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(hub, "find_download", lambda name: Download(name, name, "model", (("a", 10_000),)))
    monkeypatch.setattr(hub, "download_steps", steps)
    return begun, closed, may_end


def until(steps, condition):
    return next(step for step in steps if condition(step))


def test_visitors_share_a_download_which_ends_when_the_last_of_them_leaves(fetched):
    begun, closed, _ = fetched
    downloads = Downloads()
    one, two = downloads.steps("gpt2"), downloads.steps("gpt2")
    assert until(one, bool).done >= 1
    assert until(two, bool).done >= 1
    one.close()
    assert next(two) is not None
    assert (begun, closed) == (["gpt2"], [])
    two.close()
    wait_for(lambda: closed == ["gpt2"])


def test_cancelled_download_can_be_started_again(fetched):
    begun, _closed, may_end = fetched
    downloads = Downloads()
    steps = downloads.steps("gpt2")
    until(steps, bool)
    steps.close()
    may_end.set()
    assert list(downloads.steps("gpt2"))
    wait_for(lambda: len(begun) == 2)


def test_failure_reaches_every_visitor(fetched, monkeypatch):
    def fail(name):
        raise LabError("the hub refuses")

    monkeypatch.setattr(hub, "find_download", fail)
    with pytest.raises(LabError, match="the hub refuses"):
        list(Downloads().steps("gpt2"))
    monkeypatch.setattr(hub, "find_download", lambda name: 1 / 0)
    with pytest.raises(LabError, match="'gpt2' cannot be downloaded: division by zero"):
        list(Downloads().steps("gpt2"))


@pytest.mark.parametrize("name", ["builtin", "../etc", "someone/model", None, ["gpt2"], 7])
def test_name_that_is_not_offered_is_refused_and_nothing_begins(fetched, name):
    with pytest.raises(LabError, match="cannot be downloaded here; choose one of gpt2, "):
        next(Downloads().steps(name))
    assert fetched[0] == []


def test_silent_download_has_no_speed(fetched, monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", -1.0)
    assert until(Downloads().steps("gpt2"), bool).speed == 0.0


def test_row_shows_what_is_missing_as_text(monkeypatch, fetched):
    assert next(part.visible for part in row_of("builtin") if not isinstance(part, str)) is False
    monkeypatch.setattr(hub, "is_downloaded", lambda name: False)
    row, line, *_ = row_of("gpt2")
    assert row.visible
    assert line == "<p>gpt2 is not downloaded: 0.01 MB to download.</p>"

    def fail(name):
        raise LabError("<script>no</script>")

    monkeypatch.setattr(hub, "find_download", fail)
    monkeypatch.setattr(module, "hub_reachable", lambda: False)
    assert "the Hugging Face hub does not answer" in missing_line("gpt2")
    monkeypatch.setattr(module, "hub_reachable", lambda: True)
    assert "&lt;script&gt;" in missing_line("gpt2")


def test_bar_has_numbers_for_people_and_machines():
    drawn = bar(Progress(50_000_000, 500_000_000, 10_000_000.0))
    assert "50 MB of 500 MB, 10 MB/s, 45 s left" in drawn
    assert "<progress max='500000000' value='50000000'" in drawn
    assert "left" not in bar(Progress(1, 2, 0.0))
    assert "Asking the hub" in bar(None)


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
