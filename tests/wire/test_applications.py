"""Application packages: a folder of versions, and what of it reaches nodes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from azure.batch import models as m
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

if TYPE_CHECKING:
    from tests.support.wire import Wire

RESOURCE = "/subscriptions/0/resourceGroups/g/providers/Microsoft.Batch/batchAccounts/a/applications"


def code_of(error: HttpResponseError) -> str:
    """The error's code."""
    assert error.error is not None
    return str(error.error.code)


def pack(wire: Wire, name: str, version: str, files: dict[str, str], *, folder: bool = False) -> None:
    """Put a version of an application where the service finds it."""
    application = wire.service.data / "applications" / name
    application.mkdir(parents=True, exist_ok=True)
    if folder:
        for path, text in files.items():
            target = application / version / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(0o755)
        return
    with zipfile.ZipFile(application / f"{version}.zip", "w") as archive:
        for path, text in files.items():
            item = zipfile.ZipInfo(path)
            item.external_attr = 0o755 << 16
            archive.writestr(item, text)


def reference(name: str, version: str | None = None) -> m.BatchApplicationPackageReference:
    """A reference to a package."""
    return m.BatchApplicationPackageReference(application_id=name, version=version)


@pytest.fixture(scope="module")
def tool(wire: Wire) -> str:
    """An application with a default version."""
    pack(wire, "my-tool", "1.0", {"bin/tool": "#!/bin/sh\necho one\n"})
    pack(wire, "my-tool", "2.0", {"bin/tool": "#!/bin/sh\necho two\n"}, folder=True)
    about = {"displayName": "My tool", "defaultVersion": "2.0"}
    (wire.service.data / "applications" / "my-tool" / "application.json").write_text(json.dumps(about))
    pack(wire, "plain", "3", {"x": "y"})
    return "my-tool"


def test_applications_are_listed_and_shown(wire: Wire, tool: str) -> None:
    (wire.service.data / "applications" / "empty").mkdir(exist_ok=True)
    listed = {one.id: one for one in wire.client.list_applications()}
    assert set(listed) >= {tool, "plain"}
    assert "empty" not in listed
    assert listed[tool].versions == ["1.0", "2.0"]
    assert listed[tool].display_name == "My tool"
    assert [len(list(page)) for page in wire.client.list_applications(max_results=1).by_page()] == [1] * len(listed)
    assert wire.client.get_application("MY-TOOL").id == tool
    with pytest.raises(ResourceNotFoundError) as missing:
        wire.client.get_application("none")
    assert code_of(missing.value) == "ApplicationNotFound"


def test_pools_packages_are_on_its_nodes_before_the_start_task(wire: Wire, tool: str) -> None:
    start = m.BatchStartTask(command_line="/bin/sh -c '$AZ_BATCH_APP_PACKAGE_my_tool_1_0/bin/tool'")
    pool = wire.pool(
        1,
        start_task=start,
        application_package_references=[reference(f"{RESOURCE}/{tool}", "1.0"), reference(tool)],
    )
    (node,) = wire.nodes(pool, 1, "idle")
    assert b"".join(wire.client.download_node_file(pool, node.id, "startup/stdout.txt")) == b"one\n"
    job = wire.job(pool)
    done = wire.run(job, "/bin/sh -c '$AZ_BATCH_APP_PACKAGE_my_tool/bin/tool; echo $AZ_BATCH_APP_PACKAGE_my_tool_1_0'")
    lines = wire.text(job, done.id).splitlines()
    assert lines[0] == "two"
    assert lines[1].startswith(str(wire.root(node.id) / "applications"))
    # Changes reach nodes that are there when these are rebooted.
    options = m.BatchPoolReplaceOptions(application_package_references=[reference("plain", "3")], metadata=[])
    wire.client.replace_pool_properties(pool, options)
    shown = wire.client.get_pool(pool)
    assert shown.start_task is None
    assert [one.application_id for one in shown.application_package_references or []] == ["plain"]
    reboot: Any = {"nodeRebootOption": "requeue"}
    wire.client.begin_reboot_node(pool, node.id, reboot, polling_interval=0).wait()
    wire.until(lambda: wire.client.get_node(pool, node.id).state == "idle")
    done = wire.run(job, "/bin/sh -c 'cat $AZ_BATCH_APP_PACKAGE_plain_3/x; echo $AZ_BATCH_APP_PACKAGE_my_tool'")
    assert wire.text(job, done.id) == "y\n"
    wire.client.begin_delete_job(job, polling_interval=0).wait()
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_tasks_packages_come_with_it(wire: Wire, tool: str, job: str) -> None:
    command = "/bin/sh -c '$AZ_BATCH_APP_PACKAGE_my_tool_1_0/bin/tool'"
    for _ in range(2):
        done = wire.run(job, command, application_package_references=[reference(tool, "1.0")])
        assert done.execution_info is not None
        assert done.execution_info.result == "success"
        assert wire.text(job, done.id) == "one\n"
    without = wire.run(job, "/bin/sh -c 'echo [$AZ_BATCH_APP_PACKAGE_my_tool_1_0]'")
    assert wire.text(job, without.id) == "[]\n"


@pytest.mark.parametrize(("name", "version"), [("none", "1"), ("plain", None), ("plain", "4"), ("plain", "../3")])
def test_packages_that_are_not_there(wire: Wire, tool: str, job: str, name: str, version: str | None) -> None:
    assert tool
    with pytest.raises(HttpResponseError) as caught:
        wire.pool(1, application_package_references=[reference(name, version)])
    assert (caught.value.status_code, code_of(caught.value)) == (409, "InvalidApplicationPackageReferences")
    done = wire.run(job, "/bin/true", application_package_references=[reference(name, version)])
    assert done.execution_info is not None
    assert done.execution_info.failure_info is not None
    assert done.execution_info.failure_info.code == "ApplicationPackageError"
    assert done.execution_info.exit_code is None


def test_package_whose_files_lead_out_stays_out(wire: Wire, tool: str, job: str) -> None:
    assert tool
    pack(wire, "evil", "1", {"fine": "x", "../../../shared/evil": "x"})
    done = wire.run(job, "/bin/true", application_package_references=[reference("evil", "1")])
    assert done.execution_info is not None
    assert done.execution_info.failure_info is not None
    assert done.execution_info.failure_info.code == "ApplicationPackageError"
    assert not list(wire.service.data.glob("nodes/*/shared/evil"))
    pool = wire.name("pool")
    wire.client.create_pool(wire.pool_options(pool, application_package_references=[reference("evil", "1")]))
    (node,) = wire.nodes(pool, 1, "unusable")
    assert [error.code for error in node.errors or []] == ["ApplicationPackageError"]
    wire.client.begin_delete_pool(pool, polling_interval=0).wait()


def test_tasks_that_start_together_share_one_deployment(wire: Wire) -> None:
    """Four tasks at once on one node: the package is there as a whole for each of them, or fails for each."""
    files = {f"part/{number}": "x" * 20_000 for number in range(300)}
    pack(wire, "large", "1", files)
    pack(wire, "large", "2", files, folder=True)
    broken = wire.service.data / "applications" / "large" / "3.zip"
    broken.write_bytes((wire.service.data / "applications" / "large" / "1.zip").read_bytes()[:-5000])
    job = wire.job(wire.pool(1, 4))
    for version, code in (("1", 0), ("2", 0), ("3", None)):
        command = f"/bin/sh -c 'ls $AZ_BATCH_APP_PACKAGE_large_{version}/part | wc -l'"
        tasks = [wire.add(job, command, application_package_references=[reference("large", version)]) for _ in range(4)]
        for task in tasks:
            info = wire.state(job, task, "completed").execution_info
            assert info is not None
            assert info.exit_code == code
            if code is None:
                assert info.failure_info is not None
                assert info.failure_info.code == "ApplicationPackageError"
            else:
                assert wire.text(job, task).strip() == "300"


def test_package_stays_whole_whatever_a_task_left_in_its_place(wire: Wire, tool: str, tmp_path: Path) -> None:
    assert tool
    away = tmp_path / "away"
    away.mkdir()
    job = wire.job(wire.pool(1))
    evil = f"rm -rf $AZ_BATCH_NODE_ROOT_DIR/applications; ln -s {away} $AZ_BATCH_NODE_ROOT_DIR/applications"
    wire.run(job, f"/bin/sh -c '{evil}'")
    command = "/bin/sh -c '$AZ_BATCH_APP_PACKAGE_my_tool_1_0/bin/tool'"
    done = wire.run(job, command, application_package_references=[reference("my-tool", "1.0")])
    assert wire.text(job, done.id) == "one\n"
    assert list(away.iterdir()) == []
