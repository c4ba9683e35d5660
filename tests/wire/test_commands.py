"""How a command line is run: no shell, the documented environment and nothing else, in its own directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from azure.batch import models as m

if TYPE_CHECKING:
    from tests.support.wire import Wire

#: What of the environment a shell makes up by itself.
SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}


def environment_of(wire: Wire, job: str, task: str) -> dict[str, str]:
    """The environment a task printed with env."""
    return dict(line.split("=", 1) for line in wire.text(job, task).splitlines())


def test_there_is_no_shell(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/echo $HOME ; ls | wc > x && *")
    assert wire.text(job, task.id) == "$HOME ; ls | wc > x && *\n"


def test_quotes_group_words(wire: Wire, job: str) -> None:
    task = wire.run(job, """/usr/bin/printf '%s|' "a b" 'c "d"' e\\ f g""")
    assert wire.text(job, task.id) == 'a b|c "d"|e f|g|'


def test_environment_is_the_documented_one(wire: Wire, pool: str) -> None:
    common = [m.EnvironmentSetting(name="BOTH", value="job"), m.EnvironmentSetting(name="JOB", value="j")]
    job = wire.job(pool, common_environment_settings=common)
    own = [m.EnvironmentSetting(name="BOTH", value="task"), m.EnvironmentSetting(name="EMPTY")]
    task = wire.run(job, "/usr/bin/env", environment_settings=own)
    found = environment_of(wire, job, task.id)
    assert task.node_info is not None
    root = str(wire.root(task.node_info.node_id))
    directory = f"{root}/workitems/{job}/job-1/{task.id}"
    expected = {
        "AZ_BATCH_ACCOUNT_NAME": wire.service.account,
        "AZ_BATCH_ACCOUNT_URL": wire.service.url,
        "AZ_BATCH_JOB_ID": job,
        "AZ_BATCH_NODE_ID": str(task.node_info.node_id),
        "AZ_BATCH_NODE_IS_DEDICATED": "true",
        "AZ_BATCH_NODE_MOUNTS_DIR": f"{root}/fsmounts",
        "AZ_BATCH_NODE_ROOT_DIR": root,
        "AZ_BATCH_NODE_SHARED_DIR": f"{root}/shared",
        "AZ_BATCH_NODE_STARTUP_DIR": f"{root}/startup",
        "AZ_BATCH_POOL_ID": pool,
        "AZ_BATCH_TASK_DIR": directory,
        "AZ_BATCH_TASK_ID": task.id,
        "AZ_BATCH_TASK_WORKING_DIR": f"{directory}/wd",
        "HOME": f"{directory}/wd",
        "BOTH": "task",
        "JOB": "j",
        "EMPTY": "",
    }
    system = {name: found.pop(name) for name in ("PATH", "LANG") if name in found}
    assert found == expected
    assert system["PATH"].startswith(os.environ["PATH"])


def test_python3_is_on_the_path(wire: Wire, job: str) -> None:
    task = wire.run(job, """python3 -c 'import sys; print("python", sys.version_info.major)'""")
    assert wire.text(job, task.id) == "python 3\n"


def test_command_runs_in_its_working_directory(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'pwd; ls -A .. | sort; echo $0 > made'")
    assert wire.text(job, task.id).splitlines()[1:] == ["certs", "stderr.txt", "stdout.txt", "wd"]
    assert wire.text(job, task.id).splitlines()[0].endswith(f"workitems/{job}/job-1/{task.id}/wd")
    names = [file.name for file in wire.client.list_task_files(job, task.id, recursive=True)]
    assert "wd/made" in names


def test_relative_program_is_found_in_the_working_directory(wire: Wire, job: str) -> None:
    script = "/bin/sh -c 'printf \"#!/bin/sh\\necho ran\\n\" > tool; chmod +x tool; exec ./tool'"
    assert wire.text(job, wire.run(job, script).id) == "ran\n"


def test_nothing_can_be_read_from_standard_input(wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/cat")
    assert task.execution_info is not None
    assert task.execution_info.exit_code == 0


def test_command_leads_its_own_session(wire: Wire, job: str) -> None:
    task = wire.run(job, """python3 -c 'import os; print(os.getsid(0) == os.getpgrp() == os.getpid())'""")
    assert wire.text(job, task.id) == "True\n"


def test_no_descriptor_of_the_service_leaks(wire: Wire, job: str) -> None:
    task = wire.run(job, """python3 -c 'import os; print(sorted(os.listdir("/proc/self/fd")))'""")
    # The listing itself needs one.
    assert wire.text(job, task.id) == "['0', '1', '2', '3']\n"
