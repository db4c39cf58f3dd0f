"""What float16 loses with either accumulation, as a table, from the file that it was measured into."""

from __future__ import annotations

from collections.abc import Iterator

from figures_source import result

STEMS = ("drums", "bass", "other", "vocals")


def accumulation() -> Iterator[str]:
    """The SNR of every stem, expected and in the worst case; of models on real music, then of golden checkpoints."""
    found = result("precision_accumulation")
    yield "| float16 against float32, SNR in dB: expected / worst case | drums | bass | other | vocals |"
    yield "|---|---|---|---|---|"
    models = {f"`{part}`, four-stem excerpt": found[part]["excerpt"] for part in ("mrsep-small", "htdemucs")}
    for title, model in (
        models | {f"golden `{name}`": each for name, each in found["goldens"].items()}
    ).items():
        expected, worst = model["float32"]["snr"], model["float16"]["snr"]
        cells = (f"{expected[stem]:.1f} / {worst[stem]:.1f}" if stem in expected else "" for stem in STEMS)
        yield f"| {title} | {' | '.join(cells)} |"
