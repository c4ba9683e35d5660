"""Files are found beside the DAG file, read strictly and written whole."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from airflow_batchwrap.config import PoolConfig, WorkflowConfig, caller_folder, resolve_path
from airflow_batchwrap.exceptions import ConfigError


def dag_file(folder: Path, code: str) -> dict[str, Any]:
    """Run a file as Airflow's parser does: from its own source, in a module of its own."""
    file = folder / "my_dag.py"
    file.write_text(code)
    names: dict[str, Any] = {"__name__": "unusual_prefix_my_dag", "__file__": str(file)}
    exec(compile(code, str(file), "exec"), names)  # noqa: S102 - the test's own code
    return names


READ = "from airflow_batchwrap.config import PoolConfig\npool = PoolConfig.from_json('batch.json')\n"


def test_a_relative_path_is_beside_the_dag_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dags, elsewhere = tmp_path / "dags", tmp_path / "elsewhere"
    for folder, nodes in ((dags, 2), (elsewhere, 3)):
        folder.mkdir()
        (folder / "batch.json").write_text(json.dumps({"target_dedicated_nodes": nodes}))
    monkeypatch.chdir(elsewhere)
    assert dag_file(dags, READ)["pool"].total_nodes == 2


def test_it_is_in_the_working_directory_where_the_dag_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (tmp_path / "batch.json").write_text('{"target_dedicated_nodes": 3}')
    monkeypatch.chdir(tmp_path)
    assert dag_file(dags, READ)["pool"].total_nodes == 3


def test_a_missing_file_is_told_by_the_path_beside_the_dag_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        dag_file(tmp_path, READ)
    assert f"{tmp_path / 'batch.json'} does not exist" in str(caught.value)


def test_the_caller_is_found_through_a_helper_of_the_users_own(tmp_path: Path) -> None:
    code = (
        "from airflow_batchwrap.config import caller_folder\ndef find():\n    return caller_folder()\nhere = find()\n"
    )
    assert dag_file(tmp_path, code)["here"] == tmp_path
    assert caller_folder() == Path(__file__).parent


def test_a_path_is_resolved_against_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_path("/a/b", Path("/c")) == Path("/a/b")
    assert resolve_path("~/b", Path("/c")) == Path("/home/someone/b")
    assert resolve_path("b", Path("/nowhere")) == Path("/nowhere/b")
    assert resolve_path("b") == tmp_path / "b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Python 3.13 points at the comma, older ones at what follows it.
        ('{\n  "vm_size": "x",\n}', "line (3, column 1|2, column 17): "),
        ('{\n  "vm_size" "x"\n}', "line 2, column 13"),
        ("", "line 1, column 1"),
        ('{"vm_size": "a", "vm_size": "b"}', "the key 'vm_size' is given twice"),
        ('{"start_task": {"command_line": "a", "command_line": "a"}}', "'command_line' is given twice"),
        ('{"idle_minutes": NaN}', "NaN is not a JSON value"),
        ("[1]", "holds a JSON array, not an object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json_is_told_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "batch.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        PoolConfig.from_json(file)
    assert str(file) in str(caught.value)


def test_a_folder_and_a_binary_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        PoolConfig.from_json(tmp_path)
    (tmp_path / "batch.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        PoolConfig.from_json(tmp_path / "batch.json")


def test_a_mark_at_the_start_of_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text("\ufeff{}", encoding="utf-8")
    assert PoolConfig.from_json(tmp_path / "batch.json") == PoolConfig()


def test_an_error_names_the_file_and_not_the_class(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_text('{"target_dedicated_nodes": "two"}')
    with pytest.raises(ConfigError) as caught:
        PoolConfig.from_json(file)
    assert str(caught.value) == f"{file}: target_dedicated_nodes = 'two': use a whole number."


class TestOverrides:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "batch.json"
        file.write_text('{"BATCH_NODE_COUNT": 2, "idle_minutes": 5}')
        return file

    def test_keywords_replace_what_the_file_says_by_any_name(self, file: Path) -> None:
        assert PoolConfig.from_json(file, target_dedicated_nodes=7).total_nodes == 7
        assert PoolConfig.from_json(file, BATCH_NODE_COUNT=7).to_dict() == {
            "target_dedicated_nodes": 7,
            "idle_minutes": 5,
        }
        assert json.loads(file.read_text())["BATCH_NODE_COUNT"] == 2

    def test_a_keyword_can_mend_a_file(self, file: Path) -> None:
        file.write_text('{"BATCH_VM_SIZE": "BASIC_A1"}')
        assert PoolConfig.from_json(file, vm_size="Standard_D2s_v5").vm_size == "Standard_D2s_v5"

    def test_a_wrong_keyword_is_told_as_one(self, file: Path) -> None:
        with pytest.raises(ConfigError, match="vmsize is not a key: did you mean vm_size"):
            PoolConfig.from_json(file, vmsize="x")
        with pytest.raises(ConfigError, match=r"override\(vmsize\)"):
            PoolConfig().override(vmsize="x")

    def test_a_copy_keeps_what_was_not_given_at_its_default(self) -> None:
        config = PoolConfig(vm_size="Standard_D4s_v3")
        assert config.override(target_spot_nodes=2).to_dict() == {
            "vm_size": "Standard_D4s_v3",
            "target_low_priority_nodes": 2,
        }
        assert config.override(target_spot_nodes=2).target_dedicated_nodes == 0
        assert config.to_dict() == {"vm_size": "Standard_D4s_v3"}


class TestWriting:
    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        config = PoolConfig(
            target_spot_nodes=2, resize_timeout="20 min", start_task="true", vm_size="{{ params.size }}"
        )
        config.to_json(tmp_path / "batch.json")
        assert PoolConfig.from_json(tmp_path / "batch.json") == config

    def test_each_keeps_the_others_part_of_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "batch.json"
        file.write_text('{"BATCH_NODE_COUNT": 2, "workflow": {"task_slots": 2}}')
        WorkflowConfig.from_json(file, batch_retries=1).to_json(file)
        PoolConfig.from_json(file, vm_size="Standard_D4s_v3").to_json(file)
        assert json.loads(file.read_text()) == {
            "target_dedicated_nodes": 2,
            "vm_size": "Standard_D4s_v3",
            "workflow": {"task_slots": 2, "batch_retries": 1},
        }

    def test_nothing_is_left_beside_the_file(self, tmp_path: Path) -> None:
        PoolConfig().to_json(tmp_path / "batch.json")
        PoolConfig().to_json(tmp_path / "batch.json")
        assert [file.name for file in tmp_path.iterdir()] == ["batch.json"]

    def test_a_file_with_secrets_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "batch.json"
        PoolConfig().to_json(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        PoolConfig(start_task={"command_line": "true", "environment": {"A": "b"}}).to_json(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real.json").write_text("{}")
        (tmp_path / "batch.json").symlink_to("real.json")
        PoolConfig(idle_minutes=1).to_json(tmp_path / "batch.json")
        assert (tmp_path / "batch.json").is_symlink()
        assert json.loads((tmp_path / "real.json").read_text()) == {"idle_minutes": 1}

    def test_a_folder_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gone.batch\.json cannot be written"):
            PoolConfig().to_json(tmp_path / "gone" / "batch.json")
