"""Says in words which contender won and by how much, which lost, and what makes the result doubtful."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mrsep_deploy.bench.noise import rough
from mrsep_deploy.bench.report import race_title, rows_of
from mrsep_deploy.pages.blocks import Tone, Verdict

Plain = Mapping[str, Any]


def race_rows(result: Plain, race: Plain) -> list[Plain]:
    """The rows of a race: those with times first, the fastest at the top."""
    return sorted(rows_of(result, race), key=lambda row: (row["status"] != "ok", row["median"] or 0.0))


def race_verdict(result: Plain, race: Plain) -> Verdict:
    """The winner against who came next, and against the baseline; then everybody who lost or failed."""
    rows = race_rows(result, race)
    ready = [row for row in rows if row["status"] == "ok"]
    title = race_title(result, race)
    failures = [f"{row['label']} {row['status']}: {row['reason']}." for row in rows if row["status"] != "ok"]
    if not ready:
        timed = any(row["seconds"] for row in rows)
        said = "Nobody won: no row has right stems." if timed else "Nothing was measured."
        return Verdict(title, said, "bad", failures)
    headline, tone = _headline(ready, race["baseline"])
    details = [*_comparisons(ready, race["baseline"]), *failures]
    if race["noise"] is not None and not race["noise"]["quiet"]:
        tone = "bad" if tone == "bad" else "plain"
        details.insert(0, f"{rough(race['noise'], result['machine']['cores'])}.")
    return Verdict(title, headline, tone, details)


def _headline(ready: Sequence[Plain], baseline: str) -> tuple[str, Tone]:
    winner = ready[0]
    rate = f"{winner['realtime']:.2f} times real time"
    if len(ready) == 1:
        return f"{winner['label']}: {rate}. There was nothing to compare it with.", "plain"
    if winner["label"] == baseline:
        return f"Nothing is faster than the baseline {baseline}: {rate}.", "bad"
    found = winner["ratios"].get(baseline)
    if found is None:
        return f"{winner['label']} has the shortest median: {rate}.", "plain"
    if found["low"] <= 1:
        return (
            f"{winner['label']} has the shortest median, but its lead over {baseline} is within the noise: "
            f"{times(found)}.",
            "plain",
        )
    return f"{winner['label']} is {found['median']:.2f} times as fast as {baseline}: {rate}.", "good"


def _comparisons(ready: Sequence[Plain], baseline: str) -> Iterator[str]:
    winner = ready[0]
    against_baseline = winner["ratios"].get(baseline)
    if against_baseline is not None:
        yield f"{winner['label']} against {baseline}: {times(against_baseline)}."
    for second in ready[1:2]:
        found = winner["ratios"].get(second["label"])
        if found is not None and second["label"] != baseline:
            lead = "Ahead of" if found["low"] > 1 else "Not to be told apart from"
            yield f"{lead} {second['label']}, which came second: {times(found)}."
    for row in ready[1:]:
        found = row["ratios"].get(baseline)
        if found is None or row["label"] == baseline:
            continue
        if found["high"] < 1:
            yield f"{row['label']} is slower than {baseline}: {times(found)}."
        elif found["low"] <= 1:
            yield f"{row['label']} cannot be told apart from {baseline}: {times(found)}."


def times(found: Mapping[str, float]) -> str:
    """A ratio with its interval."""
    return f"{found['median']:.2f} × (95 % from {found['low']:.2f} to {found['high']:.2f})"


def warnings(result: Plain) -> Iterator[str]:
    """What makes the times doubtful, race by race."""
    if result["interrupted"]:
        yield "The run was interrupted; what was measured before stands."
    for race in result["races"]:
        noise = race["noise"]
        if noise is not None and not noise["quiet"]:
            title = race_title(result, race)
            yield f"The machine was not quiet ({title}): {'; '.join(noise['remarks'])}."
    for name, facts in result["models"].items():
        if not facts["trained"]:
            yield f"{name} is untrained: as fast as a trained model, its weights are random, and it separates nothing."
