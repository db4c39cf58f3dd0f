"""Draw a training run: the error and the rate over the steps, SDR of held-out crops beside them.

    python curves.py RUN/log.jsonl curves.svg

Needs matplotlib (the extra ``plot``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def read(log: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of a log by event, each step once: a run that fell back to its last save wrote some twice."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in log.read_text().splitlines():
        facts = json.loads(line)
        found.setdefault(facts["event"], {})[facts["step"]] = facts
    return {event: [steps[number] for number in sorted(steps)] for event, steps in found.items()}


def draw(log: Path, picture: Path) -> None:
    """Write the picture, in the format of its suffix."""
    from matplotlib.figure import Figure

    events = read(log)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    error, quality = figure.subplots(1, 2)
    steps = events["step"]
    error.plot([s["step"] for s in steps], [s["loss"] for s in steps], color="#4472a8")
    error.set(xlabel="step", ylabel="RMS error of a stem, mean of 25 steps", title="training")
    rate = error.twinx()
    rate.plot([s["step"] for s in steps], [s["rate"] for s in steps], color="#b0b0b0", linestyle=":")
    rate.set_ylabel("learning rate (dotted)")
    checks = events.get("validation", [])
    for source, colour in (("drums", "#c0504d"), ("bass", "#4472a8"), ("other", "#6a9a4a")):
        have = [c for c in checks if source in c]
        quality.plot([c["step"] for c in have], [c[source]["sdr"] for c in have], color=colour, label=source)
        if have:
            quality.axhline(have[0][source]["mixture"], color=colour, linestyle=":", linewidth=1)
    quality.set(xlabel="step", ylabel="SDR, dB (dotted: the mixture)", title="held-out crops, median")
    quality.legend()
    # The same picture each time: no date, no random names.
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(options.log, options.picture)


if __name__ == "__main__":
    main()
