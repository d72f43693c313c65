"""How long the pages of the built site take to open, and those with Python until it runs.

    python -m tests.tools.page_times                   every page of site/
    python -m tests.tools.page_times playground/       some

Each page opens in a profile of its own, with an empty cache, from this machine. "Opens" is the browser's largest contentful paint: when
the first screen has its largest text or picture. "Python ready" is when the page says that Python is running.
"""

import argparse
import statistics
import time

from playwright.sync_api import Browser

from .browser import SITE, VIEWS, browser, pages, server

#: Asks the browser for the last of its reports, which are there from the start (buffered).
PAINT = """() => new Promise((found) => {
  new PerformanceObserver((list) => found(list.getEntries().at(-1).startTime)).observe({type: "largest-contentful-paint", buffered: true});
  setTimeout(() => found(NaN), 5000);
})"""
#: The pages whose scripts start Python, and what says that it runs.
PYTHON = {
    "playground/": "#status[data-state=ready]",
    "theatre/write/": "#status[data-state=ready]",
    "theatre/explore/": "#status[data-state=ready]",
}


def seconds(chromium: Browser, address: str, path: str) -> tuple[float, float | None]:
    """Seconds until a page has opened, and until its Python runs; None where it has none."""
    with chromium.new_context(viewport={"width": VIEWS["desktop"][0], "height": VIEWS["desktop"][1]}) as context:
        page = context.new_page()
        start = time.perf_counter()
        page.goto(address + path)
        ready = None
        if path in PYTHON:
            page.wait_for_selector(PYTHON[path], timeout=120_000)
            ready = time.perf_counter() - start
        return page.evaluate(PAINT) / 1000, ready


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.page_times", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", help="paths below the site's root; all if none is given")
    parser.add_argument("--rounds", type=int, default=3, help="how often each page is opened; the median counts (default 3)")
    arguments = parser.parse_args()
    slowest = 0.0
    with server(SITE) as address, browser() as chromium:
        for path in arguments.pages or pages():
            taken = [seconds(chromium, address, path) for _ in range(arguments.rounds)]
            opened = statistics.median(opens for opens, _ in taken)
            slowest = max(slowest, opened)
            ready = [r for _, r in taken if r is not None]
            print(
                f"{path or '(home)'}: opens in {opened:.2f} s"
                + (f", Python ready after {statistics.median(ready):.1f} s" if ready else ""),
                flush=True,
            )
    print(f"slowest to open: {slowest:.2f} s")


if __name__ == "__main__":
    main()
