"""The page in a real browser: a document is dropped, a question asked, and the answer, tokens, mode and time appear."""

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.standin import StandIn, answer_to
from skipwise.serve.keys import create_key
from skipwise.serve.page import PAGE, PAGE_POLICY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def in_browser(test: Any) -> Any:
    missing = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page in")
    return pytest.mark.slow(missing(test))


DROP = """(async () => {
  const data = new DataTransfer();
  data.items.add(new File([%s], "report", { type: "text/plain" }));
  const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector("%s").dispatchEvent(drop);
  if (!drop.defaultPrevented) throw new Error("the browser would open the file in place of the page");
})()"""


class Browser:
    """A tab that is driven by Chromium's own protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.logged: list[str] = []
        self.asked: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(timeout=60)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.logged.append(json.dumps(message["params"]))
            if message.get("method") == "Network.requestWillBeSent":
                self.asked.append(message["params"]["request"]["url"])

    async def run(self, code: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, code: str) -> None:
        for _ in range(600):
            if await self.run(code):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"it did not come to be: {code}; {self.logged}")

    async def text(self, element: str) -> str:
        return await self.run(f"by({element!r}).textContent")

    async def fill(self, element: str, value: object) -> None:
        await self.run(f"by({element!r}).value = {json.dumps(value)}")

    async def click(self, element: str) -> None:
        await self.run(f"by({element!r}).click()")

    async def ask(self, question: str) -> None:
        await self.fill("question", question)
        await self.click("ask")
        await self.until("!by('ask').disabled")

    async def check_names(self) -> None:
        """What a screen reader is told: every control by a name, one heading of the page and one of the answer."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        told = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]
        controls = [one for one in told if one[0] in ("textbox", "combobox", "spinbutton", "button")]
        assert len(controls) >= 7
        assert all(name for _, name in controls), controls
        assert [name for role, name in told if role == "heading"] == ["Ask a document", "Answer"]


@asynccontextmanager
async def opened(url: str, folder: Path, *, width: int, dark: bool) -> AsyncIterator[Browser]:
    import aiohttp

    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += " --disable-component-update --remote-debugging-port=0 --remote-allow-origins=*"
    process = subprocess.Popen(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        told = folder / "DevToolsActivePort"
        for _ in range(600):
            if told.exists() and len(told.read_text().split()) == 2:
                break
            await asyncio.sleep(0.1)
        port = told.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tab = next(one for one in await response.json() if one["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                browser = Browser(socket)
                for domain in ("Runtime", "Log", "Network", "Page"):
                    await browser.call(f"{domain}.enable")
                scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                await browser.call("Emulation.setEmulatedMedia", features=scheme)
                await browser.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=844,
                    deviceScaleFactor=1,
                    mobile=width < 600,
                )
                await browser.call("Page.navigate", url=url)
                await browser.until("document.readyState === 'complete'")
                yield browser
    finally:
        process.terminate()
        process.wait(20)


def keep(picture: str, name: str) -> None:
    """For people, where they ask for it."""
    if folder := os.environ.get("SKIPWISE_SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))


def test_the_page_names_no_other_place() -> None:
    assert "http" not in PAGE
    assert "'unsafe" not in PAGE_POLICY
    assert PAGE_POLICY.startswith("default-src 'none'")


def test_what_the_page_speaks_of_is_there() -> None:
    ids = re.findall(r'\bid="([^"]+)"', PAGE)
    assert len(ids) == len({*ids})
    spoken_of = re.findall(r'\b(?:for|aria-labelledby|aria-describedby)="([^"]+)"|\bby\("([^"]+)"\)', PAGE)
    assert {one or other for one, other in spoken_of} <= {*ids}
    assert len(spoken_of) > 30


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_a_document_is_asked(serve: Callable[..., Any], tmp_path: Path, width: int, dark: bool) -> None:
    running = serve(StandIn(target=4096))
    document, question = "The quick brown fox. " * 20, "Who is quick?"
    prompt = f"{document}\n\n{question}"
    wide = "[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + .5)"

    async def story() -> None:
        async with opened(running.url, tmp_path / "profile", width=width, dark=dark) as browser:
            await browser.until("by('model').options.length === 3")
            assert await browser.run("by('key-row').hidden")
            await browser.check_names()
            await browser.run(DROP % ("new Uint8Array([37, 80, 68, 70, 255, 254])", "body"))
            await browser.until("by('trouble').textContent")
            assert await browser.text("trouble") == "report is not text in UTF-8; save it as such, or paste its text."
            assert await browser.text("size") == "No document yet."
            await browser.run(DROP % (json.dumps(document), "h1" if dark else "#document"))
            await browser.until("by('document').value.length > 0")
            assert await browser.text("size") == "420 characters."
            assert await browser.text("trouble") == ""
            await browser.ask(question)
            shown = {name: await browser.text(name) for name in ("answer", "read", "written", "mode")}
            assert shown == {
                "answer": answer_to(prompt.encode(), 200),
                "read": str(len(prompt)),
                "written": "200",
                "mode": "long (extended model)",
            }
            assert (await browser.text("time")).endswith(" s")
            assert await browser.run(f"{wide}.map(e => e.tagName + e.id).join()") == ""
            assert await browser.run("document.documentElement.scrollWidth <= innerWidth")
            paper = await browser.run("getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(21, 25, 30)" if dark else "rgb(255, 255, 255)")
            picture = await browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            keep(picture["data"], f"page-{width}-{'dark' if dark else 'light'}")
            await browser.fill("document", "x" * 5000)
            await browser.ask(question)
            assert "Not answered (400)" in await browser.text("trouble")
            assert "holds 4096 tokens" in await browser.text("trouble")
            asked = {url.partition("/v1")[0].rstrip("/") for url in browser.asked if url != "data:,"}
            assert asked == {running.url}
            # The refusal above is the only thing that the browser complains of.
            assert all("400" in line for line in browser.logged), browser.logged

    asyncio.run(story())


@in_browser
def test_a_key_is_asked_for_where_one_is_needed(serve: Callable[..., Any], tmp_path: Path, keys: Path) -> None:
    key = create_key(keys, "ada")
    running = serve(StandIn(token_seconds=0.01), keys=keys, grace_seconds=0.2)

    async def give(browser: Browser, given: str) -> None:
        await browser.fill("key", given)
        await browser.run("by('key').dispatchEvent(new Event('change'))")

    async def story() -> None:
        async with opened(running.url, tmp_path / "profile", width=390, dark=False) as browser:
            await browser.until("!by('key-row').hidden")
            assert await browser.text("trouble") == ""
            await browser.ask("abc")
            assert await browser.text("trouble") == "Give an API key first."
            await give(browser, key[:-1])
            await browser.until("by('trouble').textContent.startsWith('Not answered (401)')")
            await give(browser, key)
            await browser.until("by('model').options.length === 3")
            assert await browser.text("trouble") == ""
            await browser.fill("question", "abc")
            await browser.click("ask")
            await browser.until("by('answer').textContent.length > 3")
            await browser.click("stop")
            await browser.until("by('answer').textContent.endsWith('[stopped]')")
            running.wait_until(lambda: running.engine.open == set())
            assert await browser.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
            # What has come stays when the rest does not.
            await browser.fill("max-tokens", 2000)
            await browser.click("ask")
            await browser.until("by('answer').textContent.length > 3")
            await asyncio.to_thread(running.end)
            await browser.until("by('trouble').textContent.startsWith('Broken off')")
            assert (await browser.text("answer")).startswith("cba")

    asyncio.run(story())
