import pytest

from gpt2lab.progress import mapped, stepwise


@stepwise
def counted(count, *, last="end"):
    """Count."""
    if count < 0:
        raise ValueError("less than nothing")
    return ((i, count) for i in range(count)) if last is None else steps(count, last)


def steps(count, last):
    try:
        for i in range(count):
            yield i, count
    finally:
        closed.append(count)
    return last


closed = []


def test_call_runs_all_steps_and_returns_the_result():
    seen = []
    assert counted(3, on_progress=lambda done, total: seen.append((done, total))) == "end"
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert counted(0, last="x") == "x" and counted(2, last=None) is None
    assert counted.__doc__ == "Count."


def test_steps_are_checked_at_once_and_closed_where_progress_fails():
    with pytest.raises(ValueError, match="less than nothing"):
        counted.steps(-1)
    closed.clear()
    try:
        counted(3, on_progress=lambda done, total: done / 0)
    except ZeroDivisionError:
        assert closed == [3]  # already here, where the traceback still holds the generator
    else:
        pytest.fail("the fault in on_progress was swallowed")


def test_mapped_changes_the_progress_and_keeps_the_result():
    lines = mapped(counted.steps(2), "{} of {}".format)
    assert [next(lines), next(lines)] == ["0 of 2", "1 of 2"]
    with pytest.raises(StopIteration) as end:
        next(lines)
    assert end.value.value == "end"
