"""The example pages, from the results that they were made of.

    python docs/reports.py          # write docs/reports/{bench,verify,eval}.html anew

The results lie in ``benchmarks/results/report_*.json``, measured by ``benchmarks/report_examples.py``; how stands in
each page. Spectrograms are no part of a result: those of the page that is there are kept. A test compares the pages
with the results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reports"
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = re.compile(r'<figure class="pictures">.*?</div>\n</figure>\n', re.DOTALL)


def bench_report(result: Mapping[str, Any], _old: str) -> str:
    from mrsep_deploy.pages.bench_page import bench_page
    from mrsep_deploy.pages.page import render

    return render(bench_page(result))


def eval_report(result: Mapping[str, Any], _old: str) -> str:
    from mrsep_deploy.pages.eval_page import eval_page
    from mrsep_deploy.pages.page import render

    return render(eval_page(result))


def verify_report(result: Mapping[str, Any], old: str) -> str:
    """The page with the spectrograms of the old one."""
    from mrsep_deploy.pages.blocks import Pictures
    from mrsep_deploy.pages.page import render
    from mrsep_deploy.pages.verify_page import verify_page

    kept = PICTURE.findall(old)
    if not kept:
        return render(verify_page(result))
    page = render(verify_page(result, Pictures("", "", [])))
    return PICTURE.sub(lambda _: kept[0], page)


REPORTS: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
    "bench": bench_report,
    "verify": verify_report,
    "eval": eval_report,
}


def made(name: str) -> str:
    """A page as its result makes it now."""
    result = json.loads((RESULTS / f"report_{name}.json").read_text(encoding="utf-8"))
    place = FOLDER / f"{name}.html"
    old = place.read_text(encoding="utf-8") if place.exists() else ""
    return REPORTS[name](result, old)


def main() -> None:
    for name in REPORTS:
        (FOLDER / f"{name}.html").write_text(made(name), encoding="utf-8")
        print(FOLDER / f"{name}.html", file=sys.stderr)


if __name__ == "__main__":
    main()
