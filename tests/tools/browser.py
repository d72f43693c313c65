"""A headless Chromium on the built site; `python -m tests.tools.browser FOLDER [PAGE ...]` takes pictures of its pages.

The browser is the system's (`apt-get install chromium`, or CHROMIUM=/path/to/chrome); no request may leave this machine.
"""

import argparse
import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

from experiments.book import find_chromium

SITE = Path(__file__).parents[2] / "site"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEWS = {"desktop": (1280, 900), "phone": (390, 844)}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing is said of a browser that closed a page before it was loaded."""


@contextlib.contextmanager
def server(folder: Path = SITE) -> Iterator[str]:
    """Serves a folder on a free port of this machine; gives its address."""
    with _Server(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http_server.server_address[1]}/"
        finally:
            http_server.shutdown()
            thread.join()


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Starts Chromium with a fresh profile.

    Raises:
        InputError: there is none.
    """
    path = find_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


def pages(folder: Path = SITE) -> list[str]:
    """The site's pages, as paths below its root."""
    return sorted(
        path.relative_to(folder).as_posix().removesuffix("index.html") for path in folder.rglob("*.html") if path.name != "404.html"
    )


class Listener:
    """Collects what a page must not do: write errors to the console, fail to load something, ask another host."""

    def __init__(self, page: Page, address: str) -> None:
        self.complaints: list[str] = []
        note = self.complaints.append
        page.on("console", lambda message: note(f"console: {message.text}") if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(f"page error: {error}"))
        # A page that is left while it still loads aborts what it asked for: the reader's doing, not the page's.
        page.on("requestfailed", lambda request: note(f"failed: {request.url}") if request.failure != "net::ERR_ABORTED" else None)
        page.on("response", lambda response: note(f"status {response.status}: {response.url}") if response.status >= 400 else None)
        page.on(
            "request",
            lambda request: note(f"left the site: {request.url}") if not request.url.startswith((address, "data:", "blob:")) else None,
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.browser", description="Pictures of the site's pages: light, dark, and phone."
    )
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("pages", nargs="*", help="paths such as playground/; all pages if none is given")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with server() as address, browser() as chromium:
        looks: tuple[tuple[Literal["light", "dark"], str], ...] = (
            ("light", "desktop"),
            ("dark", "desktop"),
            ("light", "phone"),
            ("dark", "phone"),
        )
        for scheme, view in looks:
            width, height = VIEWS[view]
            context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            for path in arguments.pages or pages():
                page = context.new_page()
                page.goto(address + path, wait_until="networkidle")
                name = path.strip("/").replace("/", "-") or "home"
                page.screenshot(path=arguments.folder / f"{name}-{scheme}-{view}.png", full_page=True)
                page.close()
            context.close()


if __name__ == "__main__":
    main()
