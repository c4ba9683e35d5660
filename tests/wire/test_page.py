"""The live page as a browser gets it: who may see it, what it says, and that all of it is escaped."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from azure.batch import models as m

from airflow_batchwrap.local import runner
from airflow_batchwrap.local.home import Home

if TYPE_CHECKING:
    from tests.support.wire import Wire

EVERYWHERE = [
    "/ui/",
    "/ui/pools",
    "/ui/jobs?page=2",
    "/ui/pools/{pool}",
    "/ui/pools/{pool}/nodes/{node}",
    "/ui/jobs/{job}",
    "/ui/jobs/{job}/tasks/{task}",
    "/ui/jobs/{job}/tasks/{task}/view/stdout.txt",
    "/ui/jobs/{job}/tasks/{task}/output/stdout.txt",
    "/ui/jobs/{job}/tasks/{task}/files/stdout.txt",
    "/ui/nowhere",
]


@pytest.fixture(scope="module")
def page(wire: Wire) -> Iterator[httpx.Client]:
    """A browser that has opened the page with its token."""
    with httpx.Client(base_url=wire.service.url, follow_redirects=True) as client:
        assert client.get(Home(wire.service.data).page(wire.service.url)).status_code == 200
        yield client


@pytest.fixture(scope="module")
def anybody(wire: Wire) -> Iterator[httpx.Client]:
    """A browser without the token."""
    with httpx.Client(base_url=wire.service.url) as client:
        yield client


@pytest.fixture(scope="module")
def places(wire: Wire, pool: str) -> dict[str, str]:
    """A pool, one of its nodes, a job and a task of it, by what they are."""
    job = wire.job(pool)
    task = wire.run(job, "/bin/echo hello")
    assert task.node_info is not None
    return {"pool": pool, "node": str(task.node_info.node_id), "job": job, "task": task.id}


def token(wire: Wire) -> str:
    """The page's token."""
    return (wire.service.data / "page-token").read_text().strip()


def task_page(job: str, task: str) -> str:
    """The address of a task's page."""
    return f"/ui/jobs/{job}/tasks/{task}"


def rows(text: str) -> list[str]:
    """The ids in a page's list of tasks."""
    return re.findall(r'<th scope="row"><a href="/ui/jobs/[^/]+/tasks/[^"]+">([^<]+)</a>', text)


@pytest.mark.parametrize("path", EVERYWHERE)
def test_nothing_is_shown_without_the_token(anybody: httpx.Client, places: dict[str, str], path: str) -> None:
    answer = anybody.get(path.format(**places))
    assert answer.status_code == 403
    assert "hello" not in answer.text
    # The address itself is all that may come back.
    asked = answer.text.replace(path.format(**places).partition("?")[0], "")
    assert not [name for name in places.values() if name in asked]


@pytest.mark.parametrize("path", EVERYWHERE[:-1])
def test_everything_is_shown_with_the_token(page: httpx.Client, places: dict[str, str], path: str) -> None:
    assert page.get(path.format(**places)).status_code == 200


def test_token_becomes_a_cookie_and_leaves_the_address(wire: Wire, anybody: httpx.Client) -> None:
    answer = httpx.get(f"{wire.service.url}/ui/jobs?page=2&token={token(wire)}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs?page=2")
    cookie = answer.headers["set-cookie"]
    assert token(wire) not in cookie
    assert {"HttpOnly", "Path=/ui", "SameSite=strict"} <= set(cookie.split("; "))
    name, value = cookie.partition(";")[0].split("=")
    assert name.endswith(wire.service.url.rpartition(":")[2])
    for sent, status in ((value, 200), (value[:-1], 403), ("", 403), (token(wire), 403)):
        assert anybody.get("/ui/", headers={"Cookie": f"{name}={sent}"}).status_code == status
    # The cookie of a service on another port is none of ours.
    assert anybody.get("/ui/", headers={"Cookie": f"{name}0={value}"}).status_code == 403


@pytest.mark.parametrize("wrong", ["", "x", "%C3%A9", "%FF", "%00"])
def test_wrong_token_is_refused(anybody: httpx.Client, wrong: str) -> None:
    raw = httpx.URL(anybody.base_url, raw_path=f"/ui/?token={wrong}".encode())
    answer = anybody.send(anybody.build_request("GET", raw))
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.as_user
def test_token_is_random_private_and_kept(wire: Wire) -> None:
    file = wire.service.data / "page-token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token(wire)) == 43
    assert token(wire) not in wire.service.key
    assert Home(wire.service.data).token() == token(wire)


def test_empty_token_is_made_anew(tmp_path: Path) -> None:
    home = Home.make(tmp_path / "home")
    first = home.token()
    (home.path / "page-token").write_text("\n")
    assert len(home.token()) == 43
    assert home.token() != first
    assert (home.path / "page-token").stat().st_mode & 0o777 == 0o600


def test_command_line_prints_the_address(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "airflow_batchwrap.local", *map(str, arguments), "--data", str(tmp_path / "d")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    started = run("start")
    try:
        assert run("status") == started
        address = re.findall(r"^Page: (\S+)$", started, re.M)[0]
        assert httpx.get(address).status_code == 303
        assert Home(tmp_path / "d").token() not in (tmp_path / "d" / "service.log").read_text()
    finally:
        service = runner.attach(tmp_path / "d")
        assert service is not None
        service.stop()


@pytest.mark.parametrize("path", [*EVERYWHERE, "/ui/static/page.js", "/ui/static/none", "/ui/?token=x"])
def test_browser_is_told_to_keep_it_to_itself(page: httpx.Client, places: dict[str, str], path: str) -> None:
    headers = page.get(path.format(**places)).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_page_changes_nothing(page: httpx.Client, places: dict[str, str], method: str) -> None:
    answer = page.request(method, task_page(places["job"], places["task"]))
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/", "/ui/static/page.css"])
def test_other_hosts_are_refused(page: httpx.Client, path: str) -> None:
    assert page.get(path, headers={"Host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("origin", "mode", "status"),
    [
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
        ("same-site", "navigate", 200),
        ("same-site", "no-cors", 403),
        ("cross-site", "cors", 403),
    ],
)
def test_other_sites_scripts_are_refused(page: httpx.Client, origin: str, mode: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": origin, "Sec-Fetch-Mode": mode}
    assert page.get("/ui/", headers=headers).status_code == status


def test_root_sends_browsers_to_the_page(anybody: httpx.Client) -> None:
    answer = anybody.get("/", headers={"Accept": "text/html,*/*"})
    assert (answer.status_code, answer.headers["location"], answer.content) == (303, "/ui/", b"")
    assert anybody.get("/ui").headers["location"] == "/ui/"
    assert anybody.get("/").headers["content-type"].startswith("text/plain")


def test_nothing_on_the_page_comes_from_elsewhere(page: httpx.Client, places: dict[str, str]) -> None:
    for path in EVERYWHERE:
        text = page.get(path.format(**places)).text
        assert not re.findall(r"(?:src|href|action)=\"(?!/ui/|\?|#)", text)
        assert not re.findall(r"<script(?! src=\"/ui/static/page.js\" defer></script>)|<style|\son\w+=|\sstyle=", text)


def test_everything_is_escaped_and_secrets_are_hidden(wire: Wire, page: httpx.Client, pool: str) -> None:
    evil = "<script>alert(1)</script>"
    common = [m.EnvironmentSetting(name=f"J{evil}", value="job-secret")]
    metadata = [m.BatchMetadataItem(name=evil, value=evil)]
    job = wire.job(pool, common_environment_settings=common, metadata=metadata)
    task = wire.run(
        job,
        f'/bin/sh -c \'echo "{evil}"; touch "<img src=x onerror=alert(2)>"; '
        "echo http://h/c?sig=cmd-secret >&2; exit 3'",
        environment_settings=[m.EnvironmentSetting(name="PASSWORD", value="task-secret")],
        resource_files=[m.ResourceFile(http_url="http://127.0.0.1:9/in?sv=1&sig=sas-secret", file_path="in")],
        constraints=m.BatchTaskConstraints(max_task_retry_count=0),
    )
    for path in (task_page(job, task.id), f"/ui/jobs/{job}"):
        text = page.get(path).text
        assert evil not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "<img src=x" not in text
        assert not re.findall("(?:job|task|sas)-secret", text)
    text = page.get(task_page(job, task.id)).text
    assert "http://127.0.0.1:9/in?(hidden)" in text
    assert "http://h/c?(hidden)" in text
    assert "PASSWORD" in text


def test_states_exit_code_and_reason_of_waiting_are_told(wire: Wire, page: httpx.Client, pool: str, job: str) -> None:
    failed = wire.run(job, "/bin/sh -c 'echo why >&2; exit 3'")
    text = page.get(task_page(job, failed.id)).text
    assert re.search(r"<dt>Exit code</dt><dd><b class=\"bad\">3</b>", text)
    assert "FailureExitCode" in text
    assert "completed, failed" in text
    assert "why\n" in text
    lonely = wire.job("no-such-pool-" + job)
    waiting = wire.add(lonely, "/bin/true")
    text = page.get(task_page(lonely, waiting)).text
    assert "does not exist." in text
    assert "does not exist" in page.get(f"/ui/jobs/{lonely}").text


def test_tasks_are_paged_and_filtered(wire: Wire, page: httpx.Client, job: str) -> None:
    def command(number: int) -> str:
        return "/bin/false" if number % 50 == 7 else "/bin/true"

    for hundred in range(3):
        wire.client.create_tasks(
            job,
            [
                m.BatchTaskCreateOptions(id=f"n{number:03}", command_line=command(number))
                for number in range(100 * hundred, min(100 * hundred + 100, 250))
            ],
        )
    wire.until(lambda: wire.client.get_job_task_counts(job).task_counts.completed == 250)
    address: str | None = f"/ui/jobs/{job}"
    seen: list[str] = []
    pages = 0
    while address is not None:
        text = page.get(address).text
        seen += rows(text)
        pages += 1
        found = re.search(r'href="(\?[^"]+)" rel="next"', text)
        address = f"/ui/jobs/{job}" + found[1].replace("&amp;", "&") if found else None
    assert pages == 3
    assert sorted(seen) == [f"n{number:03}" for number in range(250)]
    failed = page.get(f"/ui/jobs/{job}?state=failed").text
    assert sorted(rows(failed)) == ["n007", "n057", "n107", "n157", "n207"]
    assert 'rel="next"' not in failed
    assert rows(page.get(f"/ui/jobs/{job}?state=running").text) == []
    assert sorted(rows(page.get(f"/ui/jobs/{job}?state=failed&id=N1").text)) == ["n107", "n157"]
    assert len(rows(page.get(f"/ui/jobs/{job}?id=n&page=3").text)) == 50
    for odd in ("page=99999999999999", "page=-1", "page=x", "state=x", "id=%00", "id=%F0"):
        assert page.get(f"/ui/jobs/{job}?{odd}").status_code == 200


def test_what_has_not_changed_is_not_sent_again(wire: Wire, page: httpx.Client, job: str) -> None:
    task = wire.run(job, "/bin/true")
    path = task_page(job, task.id)
    first = page.get(path)
    same = page.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_output_is_followed_by_offset(wire: Wire, page: httpx.Client, job: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = wire.add(job, f"/bin/sh -c 'echo one; while [ ! -e {gate} ]; do sleep 0.01; done; echo two'")
    path = f"{task_page(job, task)}/output/stdout.txt"
    first = wire.until(lambda: (part := page.get(path).json())["text"] and part)
    assert (first["from"], first["next"], first["text"], first["done"]) == (0, 4, "one\n", False)
    nothing = page.get(path, params={"from": 4, "mark": first["mark"]}).json()
    assert (nothing["text"], nothing["next"], nothing["done"]) == ("", 4, False)
    gate.touch()
    wire.state(job, task, "completed")
    rest = page.get(path, params={"from": 4, "mark": first["mark"]}).json()
    assert (rest["from"], rest["text"], rest["done"]) == (4, "two\n", True)
    # Of another run, everything is sent.
    again = page.get(path, params={"from": 4, "mark": "other"}).json()
    assert (again["from"], again["text"]) == (0, "one\ntwo\n")
    for odd in ("-1", "x", "9" * 40, "²"):
        assert page.get(path, params={"from": odd}).json()["text"] == "one\ntwo\n"


def test_large_output_is_sent_by_its_end(wire: Wire, page: httpx.Client, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'yes 0123456789abcde | head -n 200000'")
    path = f"{task_page(job, task.id)}/output/stdout.txt"
    part = page.get(path).json()
    assert part["size"] == 3_200_000
    assert len(part["text"]) <= 64 * 1024
    assert part["text"].startswith("0123456789abcde\n")
    assert part["next"] == part["size"]
    # Who is far behind is taken to the end, too.
    behind = page.get(path, params={"from": 0, "mark": part["mark"]}).json()
    assert behind["from"] > 3_000_000


def test_download_sends_ranges(wire: Wire, page: httpx.Client, job: str) -> None:
    task = wire.run(job, "/usr/bin/printf 0123456789")
    path = f"{task_page(job, task.id)}/files/stdout.txt"
    whole = page.get(path)
    assert (whole.status_code, whole.text) == (200, "0123456789")
    assert whole.headers["content-disposition"].startswith("attachment")
    assert whole.headers["content-type"] == "application/octet-stream"
    for asked, status, text in (
        ("bytes=3-", 206, "3456789"),
        ("bytes=3-5", 206, "345"),
        ("bytes=-4", 206, "6789"),
        ("bytes=8-99", 206, "89"),
        ("bytes=5-3", 200, "0123456789"),
        ("lines=1-2", 200, "0123456789"),
        ("bytes=10-", 416, ""),
    ):
        answer = page.get(path, headers={"Range": asked})
        assert (answer.status_code, answer.text) == (status, text), asked
    assert page.get(path, headers={"Range": "bytes=3-5"}).headers["content-range"] == "bytes 3-5/10"
    head = page.head(path)
    assert (head.content, head.headers["content-length"]) == (b"", "10")


def test_files_of_any_name_are_listed_and_none_leads_outside(
    wire: Wire, page: httpx.Client, job: str, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text("not for the page")
    script = (
        f"ln -s {tmp_path}/outside link; ln -s {tmp_path} folder; ln -s ../stdout.txt fine; ln -s loop loop; "
        "mkfifo pipe; "
        'printf odd > "$(printf "a\\377 #?%%b")"; printf "<b>" > "<i>.html"'
    )
    task = wire.run(job, f"/bin/sh -c '{script}'")
    assert task.execution_info is not None
    assert task.execution_info.exit_code == 0
    base = task_page(job, task.id)
    text = page.get(base).text
    links = re.findall(rf'href="({re.escape(base)}/files/wd/[^"]+)"', text)
    bodies = {link.rpartition("/")[2]: page.get(link) for link in links}
    assert sorted(bodies) == ["%3Ci%3E.html", "a%FF%20%23%3F%25b", "fine"]
    assert {answer.status_code for answer in bodies.values()} == {200}
    assert bodies["a%FF%20%23%3F%25b"].text == "odd"
    assert bodies["%3Ci%3E.html"].headers["content-type"] == "application/octet-stream"
    assert page.get(f"{base}/view/wd/a%FF%20%23%3F%25b").status_code == 200
    for name in ("wd/link", "wd/folder/outside", "wd/pipe", "wd/loop", "wd", "../../x", "..%2f..%2fx", "%00", "none"):
        raw = httpx.URL(page.base_url, raw_path=f"{base}/files/{name}".encode())
        assert page.send(page.build_request("GET", raw)).status_code == 404, name
        assert "not for the page" not in page.get(f"{base}/output/{name}").text


def test_failed_start_task_is_told_with_its_outputs(wire: Wire, page: httpx.Client) -> None:
    name = wire.name("pool")
    start = m.BatchStartTask(command_line="/bin/sh -c 'echo no room >&2; exit 5'", wait_for_success=True)
    wire.client.create_pool(wire.pool_options(name, 1, start_task=start))
    node = wire.nodes(name, 1, "starttaskfailed")[0]
    text = page.get(f"/ui/pools/{name}").text
    assert "The start task failed on" in text
    assert "exit code 5" in text
    assert "start task failed <b>1</b>" in text
    shown = page.get(f"/ui/pools/{name}/nodes/{node.id}").text
    assert "no room\n" in shown
    assert page.get(f"/ui/pools/{name}/nodes/{node.id}/files/startup/stderr.txt").text == "no room\n"


def test_preparation_and_release_are_shown(wire: Wire, page: httpx.Client, pool: str) -> None:
    good = wire.job(
        pool,
        job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/echo fetched"),
        job_release_task=m.BatchJobReleaseTask(command_line="/bin/sh -c 'exit 6'"),
    )
    wire.run(good, "/bin/true")
    wire.terminate(good)
    text = page.get(f"/ui/jobs/{good}").text
    assert "/bin/echo fetched" in text
    assert "exit code 6" in text
    view = re.findall(r'href="([^"]+)">preparation stdout', text)[0]
    assert "fetched\n" in page.get(view).text
    bad = wire.job(pool, job_preparation_task=m.BatchJobPreparationTask(command_line="/bin/false"))
    task = wire.add(bad, "/bin/true")
    wire.until(lambda: "failed on every usable node" in page.get(task_page(bad, task)).text)
    assert "The job preparation task failed on" in page.get(f"/ui/jobs/{bad}").text


def test_what_is_gone_is_told(page: httpx.Client, places: dict[str, str]) -> None:
    for path in ("/ui/pools/none", "/ui/pools/none/nodes/x", "/ui/jobs/none", f"/ui/jobs/{places['job']}/tasks/none"):
        answer = page.get(path)
        assert answer.status_code == 404
        assert "or not any more" in answer.text
