"""The tables of the paper on several resolutions: which models stand in them.

    1   HTDemucs, HTDemucs_n, _nf and _nn with the published defaults
    2   HTDemucs_n with 2, 3, 4 and 5 resolutions
    3   HTDemucs_n with 16, 24, 32 and 48 channels
    4   the same five branches, fused by weights, by a convolution, by a U-Net

The published defaults for an odd number of resolutions are powers of two around a window of 4096 samples: 3
(``_n``, ``_nn``) are 2048 to 8192, 5 (``_nf``, ``_dnf``) 1024 to 16384, 7 (``_2nn``) 512 to 32768. The shared
bottleneck works at the resolution of index ``K // 2``. Table 2 keeps that 4096 for even numbers too, so 2 are
2048 and 4096, 4 are 1024 to 8192: each row adds one window to the row before, and the bottleneck, with all its
tokens, stays the same.

Table 4 takes the branches of ``_nf`` (no waveform, no bottleneck, 24 channels), so that its rows differ in
nothing but the fusion; the weights are those of the paper's own form, one per resolution.
"""

from __future__ import annotations

from collections.abc import Mapping

from mrsep_deploy.export.families.family import MODELS_TABLE, PaperModel, PaperTable

RESOLUTIONS: Mapping[int, tuple[int, ...]] = {
    2: (2048, 4096),
    3: (2048, 4096, 8192),
    4: (1024, 2048, 4096, 8192),
    5: (1024, 2048, 4096, 8192, 16384),
}
CHANNELS = (16, 24, 32, 48)
_BRANCHES_OF_NF: Mapping[str, object] = {
    "nfft_list": list(RESOLUTIONS[5]),
    "channels": 24,
    "norm_starts": 3,
    "dconv_mode": 0,
}


def paper_tables() -> tuple[PaperTable, ...]:
    """The four tables."""
    n, nf = _published("htdemucs_n"), _published("htdemucs_nf")
    families = (
        ("HTDemucs", _published("htdemucs")),
        ("HTDemucs_n", n),
        ("HTDemucs_nf", nf),
        ("HTDemucs_nn", _published("htdemucs_nn")),
    )
    resolutions = tuple(
        (
            f"{k} ({', '.join(map(str, sizes))})",
            n if k == 3 else PaperModel(f"resolutions_{k}", "htdemucs_n", {"nfft_list": list(sizes)}),
        )
        for k, sizes in RESOLUTIONS.items()
    )
    channels = tuple(
        (str(k), n if k == 24 else PaperModel(f"channels_{k}", "htdemucs_n", {"channels": k}))
        for k in CHANNELS
    )
    fusions = (
        ("weights", PaperModel("fusion_weights", "mrhdemucs", _BRANCHES_OF_NF)),
        ("convolution", nf),
        ("U-Net", PaperModel("fusion_unet", "htdemucs_dnf", _BRANCHES_OF_NF)),
    )
    return (
        PaperTable(MODELS_TABLE, "model", families),
        PaperTable("Table 2: HTDemucs_n, number of resolutions", "resolutions", resolutions),
        PaperTable("Table 3: HTDemucs_n, channels of the first layer", "channels", channels),
        PaperTable("Table 4: fusion of five spectrogram branches", "fusion", fusions),
    )


def _published(family: str) -> PaperModel:
    return PaperModel(family, family)
