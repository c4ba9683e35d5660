"""What a task prints is told once, in order and in whole lines, however it is read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.hooks.output import READ_BYTES, OutputTail

NAME = "stdout.txt"


def told(data: bytes, cuts: list[int]) -> list[str]:
    """Read a file that grows as the cuts say, as a watcher does."""
    tail, lines = OutputTail(), []
    for size in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        # Each read begins where the tail says, and may be asked of a tail that was handed on.
        tail = OutputTail.from_json(tail.to_json())
        lines += tail.take(NAME, data[tail.offsets.get(NAME, 0) : size])
    return lines + tail.take(NAME, data[tail.offsets.get(NAME, 0) :], last=True)


@given(text=st.text(alphabet=st.sampled_from("ab é\U0001f600\n"), max_size=60), cuts=st.lists(st.integers(0, 300)))
def test_lines_are_the_same_however_the_file_grew(text: str, cuts: list[int]) -> None:
    whole = text.removesuffix("\n").split("\n") if text else []
    assert told(text.encode(), cuts) == [f"[stdout] {line}" for line in whole]


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60)))
def test_what_is_no_text_is_told_as_well(data: bytes, cuts: list[int]) -> None:
    whole = data.decode("utf-8", "replace")
    lines = whole.removesuffix("\n").split("\n") if data else []
    assert told(data, cuts) == [f"[stdout] {line.rstrip(chr(13))}" for line in lines]


def test_line_that_fills_a_read_does_not_wait_for_its_end() -> None:
    tail = OutputTail()
    text = "é" * READ_BYTES
    data = b"x" + text.encode()
    (first,) = tail.take(NAME, data[:READ_BYTES])
    # The read ended within a character, which is left for the next one.
    assert tail.offsets[NAME] == READ_BYTES - 1
    assert first == "[stdout] x" + "é" * ((READ_BYTES - 2) // 2)


def test_rerun_begins_anew() -> None:
    tail = OutputTail({NAME: 7}, reruns=1)
    assert not tail.begin(1)
    assert tail.offsets == {NAME: 7}
    assert tail.begin(2)
    assert (tail.offsets, tail.reruns) == ({}, 2)


def test_run_on_another_node_begins_anew_though_it_is_not_counted() -> None:
    # Batch counts as a requeue what a user's request leads to: not that a node was lost.
    tail = OutputTail()
    assert not tail.begin(0, "")
    assert not tail.begin(0, "10:00")
    tail.offsets[NAME] = 7
    assert not tail.begin(0, "10:00")
    assert not tail.begin(0, "")
    assert OutputTail.from_json(tail.to_json()).begin(0, "10:05")
    assert tail.begin(0, "10:05")
    assert tail.offsets == {}
    # A rerun that is counted begins anew once, although its time is seen later.
    assert tail.begin(1, "10:05")
    assert not tail.begin(1, "10:10")
    assert tail.begin(1, "10:15")


def test_quiet_file_is_read_less_often() -> None:
    tail = OutputTail()
    assert tail.due
    tail.rest(new=True)
    assert not tail.due


def test_what_was_handed_on_may_be_anything() -> None:
    wrong: list[object] = [None, {}, [], "x", {"offsets": 1, "reruns": 2}, {"offsets": {"a": "b"}, "reruns": 0}]
    for data in wrong:
        assert OutputTail.from_json(data) == OutputTail()
