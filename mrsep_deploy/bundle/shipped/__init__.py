"""The model that comes with this package: a small one of the multi-resolution family, trained on free music.

It is taken where no model is named, none was chosen and none has been exported. ``MODEL_CARD.md`` beside this
file says what it was trained on, how well it separates, and where it does not.
"""

from __future__ import annotations

from pathlib import Path

NAME = "mrsep-small"
"""What ``-n`` takes. A model that the user exports under this name comes first."""

LIMITS = (
    f"{NAME} is small, for trying things out: drums, bass and other come apart, with leaks; its vocals are next to "
    "silent.",
    "For vocals take HTDemucs: mrsep-deploy fetch htdemucs",
)
"""What a run with it says it can and cannot do, in two lines; the figures are in the model card."""

BUNDLE = Path(__file__).with_name(f"{NAME}.zip")
CHECKPOINT = Path(__file__).with_name(f"{NAME}.th")
"""The weights as a published package; the bundle was exported from it, and records it by its name alone."""
