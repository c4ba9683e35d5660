"""What the page of the local service reads, hides and finds, without a service around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batchwrap.local.model.entities import Job, Task
from airflow_batchwrap.local.page import files, hide, ranges, render, tasks
from airflow_batchwrap.local.page.files import Place


def follow(path: Path, cuts: list[int], content: bytes) -> str:
    """What a reader sees who looks each time a part of a text has been written."""
    text, following, mark = "", 0, None
    for end in [*sorted(min(cut, len(content)) for cut in cuts), len(content)]:
        path.write_bytes(content[:end])
        part = files.read(Place(path.parent, ""), path.name, following, mark)
        text, following, mark = text + part.text, part.following, part.mark
    last = files.read(Place(path.parent, "", over=True), path.name, following, mark)
    assert last.done
    assert last.following == len(content)
    return text + last.text


PIECES = st.sampled_from(
    ["a", "line\n", "\r\n", "\r", "é", "𝄞", "\x1b[31m", "\x1b]0;title\x07", "\x1b(B", "\x1b", "\t"]
)


@given(pieces=st.lists(PIECES, max_size=30), cuts=st.lists(st.integers(0, 120), max_size=6))
def test_text_is_the_same_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], cuts: list[int]
) -> None:
    content = "".join(pieces)
    path = tmp_path_factory.getbasetemp() / "followed.txt"
    assert follow(path, cuts, content.encode()) == files.plain(content)


@given(content=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_are_read_to_their_end(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cuts: list[int]
) -> None:
    text = follow(tmp_path_factory.getbasetemp() / "bytes.txt", cuts, content)
    assert not set(text) & {chr(code) for code in range(32) if chr(code) not in "\t\n\r"}


def test_terminal_sequences_and_reordering_marks_are_gone() -> None:
    hostile = "\x1b[2J\x1b[1;31mred\x1b[0m \x1b]8;;http://evil/\x07link\x1b]8;;\x1b\\ \x9b31m\x07 a\u202eb \x00"
    assert files.plain(hostile) == "red link 31m a\ufffdb "


def test_carriage_return_overwrites_its_line() -> None:
    assert files.overwritten("x\n10%\r20%\r100%\ndone\r\n") == "x\n100%\ndone\n"


@pytest.mark.parametrize("hostile", ["\x1b" * 200_000, "\x1b[" * 100_000, "\x1b]" * 100_000, "\x1b]" + "x" * 200_000])
def test_hostile_sequences_do_not_hold_up_the_reader(tmp_path: Path, hostile: str) -> None:
    (tmp_path / "out").write_text(hostile)
    part = files.read(Place(tmp_path, ""), "out")
    assert "\x1b" not in part.text


def test_shrunken_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("first run")
    place = Place(tmp_path, "", mark="run")
    before = files.read(place, "out")
    path.write_text("again")
    part = files.read(place, "out", before.following, before.mark)
    assert (part.start, part.text) == (0, "again")


def test_listing_is_bounded(tmp_path: Path) -> None:
    for number in range(files.LISTED + 1):
        (tmp_path / f"f{number:04}").touch()
    deep = tmp_path / "/".join("d" * 30)
    deep.mkdir(parents=True)
    (deep / "file").touch()
    # One more than is shown, which says that there are more.
    assert len([each for each in files.listing(Place(tmp_path, "")) if each]) == files.LISTED + 1
    assert list(files.listing(Place(None, ""))) == []
    assert list(files.listing(Place(tmp_path / "none", ""))) == []


def test_secrets_are_hidden_at_any_depth() -> None:
    body = {
        "commandLine": "curl -H x 'https://a.blob/c?sv=1&sig=SECRET' --password=SECRET sig=SECRET; echo http://u:SECRET@h/",
        "environmentSettings": [{"name": "A", "value": "SECRET"}],
        "jobPreparationTask": {"environmentSettings": [{"name": "B", "value": "SECRET"}]},
        "resourceFiles": [{"httpUrl": "https://u:SECRET@a.blob/c/x?sig=SECRET#SECRET", "filePath": "x"}],
        "mountConfiguration": [{"azureFileShareConfiguration": {"accountKey": "SECRET", "accountName": "n"}}],
        "containerRegistries": [{"username": "u", "password": "SECRET"}],
        "userAccounts": [{"linuxUserConfiguration": {"sshPrivateKey": "SECRET"}}],
        "outputFiles": [{"destination": {"container": {"containerUrl": "http://h/c?SECRET", "path": "p"}}}],
        "requiredSlots": 1,
    }
    shown = hide.body(body)
    assert "SECRET" not in json.dumps(shown)
    assert shown["resourceFiles"] == [{"httpUrl": "https://a.blob/c/x?(hidden)", "filePath": "x"}]
    assert shown["requiredSlots"] == 1
    assert "SECRET" in json.dumps(body)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("curl https://a/b?sig=S -o x", "curl https://a/b?(hidden) -o x"),
        ("curl https://a/b# https://c/#d?sig=S", "curl https://a/b# https://c/#d?(hidden)"),
        ("git clone https://me:S@host/x?", "git clone https://(hidden)@host/x?"),
        ("https://S@S@host http://a/b@c", "https://(hidden)@host http://a/b@c"),
        ("http://S:S@h/http://S@h?S", "http://(hidden)@h/http://(hidden)@h?(hidden)"),
        ("run --sig=S AccountKey=S;x password=S", "run --sig=(hidden) AccountKey=(hidden);x password=(hidden)"),
        ("echo a?b=c", "echo a?b=c"),
    ],
)
def test_text_loses_what_signs_or_opens(text: str, shown: str) -> None:
    assert hide.text(text) == shown


def test_long_text_is_cut_before_a_word_not_in_it() -> None:
    start = "x" * (hide.TEXT - 20)
    shown = hide.text(f"{start} https://me:SECRET@host/path and more")
    assert shown == f"{start} (37 characters more)"
    assert "SECRET" not in hide.text("https://me:SECRET" * 2000)
    assert "SECRET" not in hide.address("https://me:SECRET" * 2000)


@given(header=st.text("bytes=0123-, ", max_size=12), size=st.integers(0, 40))
def test_range_lies_inside(header: str, size: int) -> None:
    try:
        first, end, partial = ranges.wanted(header, size)
    except ranges.Unsatisfiable:
        return
    assert 0 <= first <= end <= size
    assert partial or (first, end) == (0, size)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.99, "10.0 s"), (61, "1 min 01 s"), (3700, "1 h 01 min"), (90_000, "1 d 01 h")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert render.span(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_960, "1.0 MB")])
def test_sizes_are_readable(count: int, text: str) -> None:
    assert render.size(count) == text


def test_half_a_surrogate_pair_is_shown() -> None:
    answer = render.render("missing.html", 404, account="a", detail=json.loads('"\\ud800"'))
    assert b"\\ud800" in answer.body


async def test_search_looks_no_further_than_it_has_to() -> None:
    job = Job(1, "job", {"poolInfo": {"poolId": "p"}, "priority": 0, "maxParallelTasks": -1})
    for number in range(20_000):
        job.tasks.add(Task(number + 2, f"task-{number}", job, b"{}"))
    job.counts["active"] = 20_000
    rows, pages = await tasks.search(job, "", "", 200)
    assert [row["id"] for row in rows] == [f"task-{number}" for number in range(19_900, 20_000)]
    assert (pages["number"], pages["last"], pages["more"]) == (200, 200, False)
    rows, pages = await tasks.search(job, "", "", 10**9)
    assert pages["number"] == 200
    rows, pages = await tasks.search(job, "active", "TASK-1999", 1)
    assert [row["id"] for row in rows] == ["task-1999", *(f"task-1999{digit}" for digit in range(10))]
    assert pages["last"] is None
    assert (await tasks.search(job, "failed", "", 1))[0] == []
