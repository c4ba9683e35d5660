"""The patterns of output files: what they mean, each file once, in a time that no pattern and no name can stretch."""

from __future__ import annotations

import fnmatch
import random
import time
from pathlib import Path

import pytest

from airflow_batchwrap.local.node import patterns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node's root with a working directory and a few files."""
    working = tmp_path / "node" / "wd"
    for name in ("top.txt", "a/b/c/x", "a/b/c/.hidden", "a/b/x", ".dot/x", "a/plain.txt", "[x]"):
        (working / name).parent.mkdir(parents=True, exist_ok=True)
        (working / name).touch()
    (working / "linked").symlink_to("a")
    (working / "out").symlink_to(tmp_path)
    (working / "file-link").symlink_to("top.txt")
    (tmp_path / "outside.txt").touch()
    return tmp_path / "node"


def found(root: Path, pattern: str) -> list[str]:
    """The names of the blobs of a pattern."""
    return sorted(match.name for match in patterns.match(pattern, root / "wd", root) if match is not None)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*.txt", ["a/plain.txt", "top.txt"]),
        ("**/**/*.txt", ["a/plain.txt", "top.txt"]),
        ("**/**/**/**/**/x", ["a/b/c/x", "a/b/x"]),
        ("**", ["[x]", "a/b/c/x", "a/b/x", "a/plain.txt", "file-link", "top.txt"]),
        ("a/**", ["b/c/x", "b/x", "plain.txt"]),
        ("**/b/**/x", ["a/b/c/x", "a/b/x"]),
        ("**/c/../x", []),
        ("a/b/c/.h*", [".hidden"]),
        (".dot/*", ["x"]),
        ("[[]x]", ["[x]"]),
        # A link to a directory is followed where it is named before the first wildcard, and only if it leads inside.
        ("linked/*.txt", ["plain.txt"]),
        ("l*/*.txt", []),
        ("out/*.txt", []),
        ("file-*", ["file-link"]),
        ("", []),
        ("none/*", []),
        ("a\0b", []),
    ],
)
def test_each_file_once(root: Path, pattern: str, names: list[str]) -> None:
    assert found(root, pattern) == names


@pytest.mark.parametrize("pattern", ["/etc/*", "../../*", "../../../etc/passwd"])
def test_pattern_that_leads_out_says_so(root: Path, pattern: str) -> None:
    with pytest.raises(patterns.OutsideError, match="leads out"):
        found(root, pattern)


@pytest.mark.parametrize(
    ("pattern", "name", "matching"),
    [
        ("[z-a]*", "z", False),
        ("[!z-a]*", "z", True),
        ("[]a]", "]", True),
        ("[!]a]", "b", True),
        ("[a-]", "-", True),
        ("[^a]", "^", True),
        ("[", "[", True),
        ("[a", "[a", True),
        ("*", ".dot", False),
        (".*", ".dot", True),
        ("?", "\n", True),
        ("\\*", "\\x", True),
        ("*\udcff", "a\udcff", True),
        ("?" * 256, "a" * 255, False),
    ],
)
def test_one_name(pattern: str, name: str, matching: bool) -> None:
    assert patterns.matches(pattern, name) is matching


def test_stars_mean_what_fnmatch_means_by_them() -> None:
    dice = random.Random(1)
    for _ in range(20_000):
        pattern = "".join(dice.choice("ab*?") for _ in range(dice.randint(0, 8)))
        name = "".join(dice.choice("ab") for _ in range(dice.randint(0, 8)))
        assert patterns.matches(pattern, name) is fnmatch.fnmatchcase(name, pattern), (pattern, name)


@pytest.mark.parametrize("pattern", ["*a" * 120 + "*b", "*?" * 125 + "b", "*[ab]" * 60 + "b", "*" * 30_000 + "b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    # A regular expression with as many stars would take longer than the universe has lasted.
    begun = time.thread_time()
    for _ in range(100):
        assert not patterns.matches(pattern, "a" * 255)
    assert time.thread_time() - begun < 1


def test_many_ways_to_one_file_are_one_way(tmp_path: Path) -> None:
    working = tmp_path / "wd"
    deep = working / "/".join("a" * 60)
    deep.mkdir(parents=True)
    (deep / "x").touch()
    begun = time.thread_time()
    assert found(tmp_path, "**/a/" * 25 + "x") == ["/".join("a" * 60) + "/x"]
    assert time.thread_time() - begun < 1
