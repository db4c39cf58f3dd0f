"""What float16 loses with either accumulation, as a table, from the file that it was measured into."""

from __future__ import annotations

from collections.abc import Iterator

from figures_source import SOURCES, result


def accumulation() -> Iterator[str]:
    """The SNR of every stem, expected and in the worst case; of models on real music, then of golden checkpoints."""
    found = result("precision_accumulation")
    rows = {f"`{model}`, four-stem excerpt": found[model]["excerpt"] for model in ("mrsep-small", "htdemucs")}
    rows |= {f"golden `{name}`": golden for name, golden in found["goldens"].items()}
    yield "| float16 against float32, SNR in dB: expected / worst case | drums | bass | other | vocals |"
    yield "|---|---|---|---|---|"
    for title, row in rows.items():
        expected, worst = row["float32"]["snr"], row["float16"]["snr"]
        cells = (f"{expected[each]:.1f} / {worst[each]:.1f}" if each in expected else "" for each in SOURCES)
        yield f"| {title} | {' | '.join(cells)} |"
