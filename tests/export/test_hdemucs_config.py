"""Arguments of HDemucs and Demucs: what is refused by name, and segments of another length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from mrsep_deploy.errors import CheckpointError, UsageError
from mrsep_deploy.export.families import FAMILIES
from mrsep_deploy.export.load import load_model, reload

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FAMILY = FAMILIES["hdemucs"]


@pytest.mark.parametrize(
    ("variant", "arguments", "message"),
    [
        ("hdemucs", {"wiener_iters": 1}, "wiener_iters=1; only wiener_iters=0"),
        ("hdemucs", {"hybrid": False}, "hybrid=False; only hybrid=True"),
        ("hdemucs", {"t_layers": 5}, "hdemucs does not know: t_layers"),
        ("hdemucs", {"multi_freqs": [0.3, 0.1]}, "rising numbers"),
        ("hdemucs", {"multi_freqs": "no"}, "multi_freqs is 'no', expected a list"),
        ("hdemucs", {"multi_freqs": [0.1], "multi_freqs_depth": 6}, "no norm in the layers"),
        ("hdemucs", {"depth": 2}, "no layer to meet in"),
        ("hdemucs", {"channels": 24, "growth": 1}, "do not divide into the 4 heads"),
        ("demucs_time", {"nfft": 4096}, "demucs_time does not know: nfft"),
        ("demucs_time", {"lstm_layers": 99}, "0 to 16 lstm_layers"),
        ("demucs_time", {"channels": 24, "growth": 1}, "do not divide into 4 heads"),
    ],
)
def test_refused(variant: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        FAMILY.model(FAMILY.config(variant, (), {"sources": ["a"], **arguments})[0])


def test_segments_of_another_length(tmp_path: Path) -> None:
    """Asked for, or by the bag; the bundle's model is made again with the same."""
    file = GOLDEN / "hdemucs" / "hdemucs.th"
    assert load_model(file).info().segment == 1
    longer = load_model(file, segment=1.5)
    assert longer.info().segment == Fraction(3, 2)
    assert reload(longer.origin).info().segment == Fraction(3, 2)
    (tmp_path / "aaaa1111.th").symlink_to(file)
    (tmp_path / "bag.yaml").write_text("models: ['aaaa1111']\nsegment: 2\n")
    assert load_model(tmp_path / "bag.yaml").info().segment == 2
    with pytest.raises(UsageError, match="segments of 3 s were asked for; those of htdemucs have"):
        load_model(GOLDEN / "htdemucs.th", segment=3)
