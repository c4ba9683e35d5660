"""The live page in a real Chromium: it follows what happens without a reload, and asks nobody else for anything."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from airflow_batchwrap.local.home import Home

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

    from tests.support.wire import Wire

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATION = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), str(APPLICATION) if APPLICATION.exists() else None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on this machine (none of {', '.join(NAMES)})")

#: How long anything may take to be seen, in milliseconds.
SOON = 60_000


@dataclass
class Window:
    """A browser window, and what it complained about and asked for."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        """Go to an address of the page, and mark what is loaded there, to tell a reload."""
        self.page.goto(self.base + path)
        self.page.evaluate("window.marked = true")

    def sees(self, text: str, inside: str = "main") -> None:
        """Wait until there is a text."""
        self.page.locator(inside, has_text=text).first.wait_for(timeout=SOON)

    def reloaded(self) -> bool:
        """Whether the page was loaded anew since `open`."""
        return not self.page.evaluate("window.marked === true")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium that can reach nothing but this machine."""
    arguments = [
        "--no-sandbox",
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ]
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


def window_of(browser: Browser, wire: Wire, **options: object) -> Window:
    """A window of its own in which the page was opened with its token."""
    settings = {"viewport": {"width": 1280, "height": 850}, **options}
    window = Window(browser.new_context(**settings).new_page(), wire.service.url)  # type: ignore[arg-type]

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            window.complaints.append(message.text)

    def asked(request: Request) -> None:
        window.asked.append(request.url)

    window.page.on("console", said)
    window.page.on("pageerror", lambda error: window.complaints.append(str(error)))
    window.page.on("request", asked)
    window.page.goto(Home(wire.service.data).page(wire.service.url))
    return window


@pytest.fixture
def window(browser: Browser, wire: Wire) -> Iterator[Window]:
    """A window on the page, which must neither complain nor ask elsewhere."""
    opened = window_of(browser, wire)
    yield opened
    opened.page.context.close()
    assert opened.complaints == []
    assert {url for url in opened.asked if not url.startswith(f"{wire.service.url}/ui/")} == set()


def test_address_loses_its_token(window: Window) -> None:
    assert window.page.url == f"{window.base}/ui/"
    assert window.page.evaluate("document.cookie") == ""


def test_new_pool_appears_with_its_heat_map(window: Window, wire: Wire) -> None:
    window.open("/ui/pools")
    name = wire.pool(3, 2)
    card = window.page.locator(".card", has_text=name)
    card.locator(".square.idle").nth(2).wait_for(timeout=SOON)
    assert card.locator(".square").count() == 3
    square = card.locator(".square").first
    assert "idle" in str(square.get_attribute("aria-label"))
    assert "0 of 2 slots busy" in str(square.get_attribute("data-tip"))
    square.hover()
    shown = square.evaluate("(one) => getComputedStyle(one, '::after').content")
    assert "0 of 2 slots busy" in shown
    assert not window.reloaded()


def test_running_task_is_followed_to_its_end(window: Window, wire: Wire, tmp_path: Path) -> None:
    pool = wire.pool(1, 1)
    job = wire.job(pool)
    gate = tmp_path / "gate"
    loop = (
        f'i=0; while [ ! -e {gate} ]; do i=$((i+1)); echo round $i; sleep 0.05; done; printf "the \\033[1mend\\033[0m"'
    )
    task = wire.add(job, f"/bin/sh -c '{loop}'", id="follow-me")
    wire.state(job, task, "running")
    window.open(f"/ui/jobs/{job}")
    window.sees("running", "tbody tr")
    window.page.get_by_role("link", name=task).click()
    window.page.evaluate("window.marked = true")
    output = "section.output:has-text('stdout')"
    window.sees("round 2\n", output)
    window.sees("running", "dl .badge")
    lines = window.page.locator(f"{output} pre").inner_text().count("round")
    window.sees(f"round {lines + 20}\n", output)
    window.page.evaluate("getSelection().selectAllChildren(document.querySelector('code.command'))")
    gate.touch()
    window.sees("succeeded", "dl .badge")
    window.sees("the end", output)
    window.sees("completed, succeeded", ".history")
    assert not window.reloaded()
    # What was selected is still selected: only what changed was touched.
    assert "while" in window.page.evaluate("String(getSelection())")
    # What is complete is not asked for again.
    outputs = window.page.locator("[data-output]")
    wire.until(lambda: outputs.count() == window.page.locator("[data-done]").count() == 2)
    before = [url for url in window.asked if "/output/" in url]
    for _ in range(2):
        with window.page.expect_response(lambda answer: "/output/" not in answer.url, timeout=SOON):
            pass
    assert [url for url in window.asked if "/output/" in url] == before


def test_state_of_nodes_and_jobs_changes_on_the_page(window: Window, wire: Wire) -> None:
    pool = wire.pool(1, 2)
    job = wire.job(pool)
    window.open("/ui/")
    row = window.page.locator("tr", has_text=job)
    row.get_by_text("active", exact=False).first.wait_for(timeout=SOON)
    task = wire.add(job, "/bin/sleep 600")
    window.page.locator(".card", has_text=pool).locator(".square.running").wait_for(timeout=SOON)
    assert window.page.locator(".card", has_text=pool).locator(".square").inner_text() == "1"
    wire.terminate(job)
    wire.state(job, task, "completed")
    row.locator(".badge", has_text="completed").wait_for(timeout=SOON)
    window.page.locator(".card", has_text=pool).locator(".square.idle").wait_for(timeout=SOON)
    assert not window.reloaded()


def test_hostile_texts_stay_texts(window: Window, wire: Wire, job: str) -> None:
    evil = "<img src=x onerror=window.stolen=1><script>window.stolen=1</script>"
    script = f'echo "{evil}"; touch "<img src=x onerror=window.stolen=1>"; exit 1'
    task = wire.run(job, f"/bin/sh -c '{script}'")
    window.open(f"/ui/jobs/{job}/tasks/{task.id}")
    window.sees(evil, "section.output")
    # Once more from the script, which has drawn everything anew by then.
    with window.page.expect_response(lambda answer: answer.url.endswith(f"/tasks/{task.id}"), timeout=SOON):
        pass
    window.sees(evil, "code.command")
    assert window.page.evaluate("window.stolen") is None
    assert window.page.locator("main img, main script").count() == 0
    window.page.locator("tbody a", has_text="onerror").first.click()
    window.page.wait_for_url("**/view/wd/**")
    assert window.page.evaluate("window.stolen") is None


def test_endless_output_stays_small_on_the_page(window: Window, wire: Wire, job: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    # About 200 MB a minute at most; what cannot be kept up with is left out.
    loop = f'while [ ! -e {gate} ]; do head -c 100000 /dev/zero | tr "\\0" x | fold -w 99; sleep 0.03; done; echo last'
    task = wire.add(job, f"/bin/sh -c '{loop}'")
    wire.state(job, task, "running")
    window.open(f"/ui/jobs/{job}/tasks/{task}")
    window.sees(", its end shown", ".output .fill")
    fill = window.page.locator(".output .fill").first
    wire.until(lambda: re.match(r"(?:[5-9]|\d\d+)\.\d MB", fill.inner_text()), timeout=60)
    assert window.page.evaluate("document.querySelector('.output pre').textContent.length") < 1_400_000
    gate.touch()
    window.sees("last\n", "section.output")
    below = "(pre) => pre.scrollHeight - pre.scrollTop - pre.clientHeight"
    assert window.page.locator(".output pre").first.evaluate(below) < 40


def test_filter_is_kept_while_the_page_follows(window: Window, wire: Wire, job: str) -> None:
    wire.run(job, "/bin/true", id="good-1")
    window.open(f"/ui/jobs/{job}")
    window.page.get_by_label("Task id contains").fill("BAD")
    window.page.get_by_role("button", name="Find").click()
    window.sees("tasks with “BAD” in their id")
    window.page.get_by_label("Task id contains").fill("still typing")
    wire.run(job, "/bin/false", id="bad-1")
    window.sees("bad-1", "tbody")
    assert window.page.get_by_label("Task id contains").input_value() == "still typing"
    assert window.page.locator("tbody tr").count() == 1


def test_page_works_without_scripts(browser: Browser, wire: Wire, job: str) -> None:
    task = wire.run(job, "/bin/sh -c 'printf \"10%%\\r100%%\\n\"'")
    window = window_of(browser, wire, java_script_enabled=False)
    window.page.goto(f"{window.base}/ui/jobs/{job}/tasks/{task.id}")
    assert window.page.locator(".output pre").first.text_content() == "100%\n"
    assert "reload to see more" in window.page.locator("footer").inner_text()
    window.page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(browser: Browser, wire: Wire, job: str, scheme: Literal["light", "dark"]) -> None:
    task = wire.run(job, '/bin/sh -c \'head -c 3000 /dev/zero | tr "\\0" x; touch ' + "long" * 40 + "'")
    window = window_of(browser, wire, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    for path in ("/ui/", "/ui/pools", "/ui/jobs", f"/ui/jobs/{job}", f"/ui/jobs/{job}/tasks/{task.id}"):
        window.open(path)
        assert window.page.evaluate("document.documentElement.scrollWidth") == 360, path
    back = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 200) == (scheme == "dark")
    window.page.context.close()


def test_link_from_another_site_asks_to_go_on(browser: Browser, wire: Wire, job: str) -> None:
    window = window_of(browser, wire)
    # The same machine by its other name is another site, whose links bring no cookie along.
    window.page.goto(f"{window.base.replace('127.0.0.1', 'localhost')}/ui/")
    window.page.evaluate(f"location.href = '{window.base}/ui/jobs/{job}'")
    window.page.get_by_role("link", name="Go on").click()
    window.sees(job, "h1")
    window.page.context.close()


def test_lost_service_is_told_and_found_again(browser: Browser, wire: Wire) -> None:
    window = window_of(browser, wire)
    window.page.context.set_offline(True)
    window.sees("no answer, trying again", "#live")
    window.page.context.set_offline(False)
    window.page.locator("#live.on").wait_for(timeout=SOON)
    window.page.context.close()
