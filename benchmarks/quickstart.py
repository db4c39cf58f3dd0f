"""The first command: set everything up, separate a song, and compare with PyTorch.

    python3 benchmarks/quickstart.py [SONG]

Exports the checkpoint that comes with the project, a small trained model of the multi-resolution family, runs a
real song through it on ONNX Runtime, and prints how close the stems are to PyTorch's and how long both take.
Without SONG it fetches a 6-second excerpt with true stems.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bootstrap import ROOT, enter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mrsep_deploy.separation.separator import Separator

MODEL = "quickstart"
CHECKPOINT = ROOT / "mrsep_deploy" / "bundle" / "shipped" / "mrsep-small.th"
ROUNDS = 3


def main() -> None:
    """Export, run, compare."""
    enter("export,av")
    from mrsep_deploy.commands.main import main as cli

    _command(cli, "export", str(CHECKPOINT), "--name", MODEL, "--overwrite")
    song = Path(sys.argv[1]) if len(sys.argv) > 1 else excerpt_mixture()
    _command(cli, "run", str(song), "--model", MODEL, "--out", str(ROOT / "separated"))
    compare(song)


def _command(cli: object, *arguments: str) -> None:
    print(f"\n$ mrsep-deploy {' '.join(arguments)}", flush=True)
    try:
        cli(list(arguments))  # type: ignore[operator]
    except SystemExit as end:
        if end.code:
            raise


def excerpt_mixture() -> Path:
    """The sum of a real excerpt's four stems, as a wav file in the cache."""
    import soundfile
    from assets import cache_folder, read_excerpt

    path = cache_folder() / "excerpt-mixture.wav"
    if not path.exists():
        mixture: NDArray[np.float32] = sum(read_excerpt().values())  # type: ignore[assignment]
        soundfile.write(path, mixture.T, 44100, subtype="FLOAT")
    return path


def compare(song: Path) -> None:
    """Stems of ONNX Runtime against PyTorch's on the same song, and the time of one segment on each."""
    from rich.console import Console
    from rich.table import Table

    from mrsep_deploy.audio.read import AudioSource
    from mrsep_deploy.measuring.deviation import Deviation
    from mrsep_deploy.separation.separator import Separator

    with Separator(MODEL, engine="ort") as ort, Separator(MODEL, engine="torch") as torch:
        mix = AudioSource(song, ort.sample_rate, ort.audio_channels).read()
        # Parity and latency need no more than the song's first segments.
        mix = mix[:, : 2 * ort.manifest.model.segment_samples]
        exported, reference = ort.separate(mix), torch.separate(mix)
        table = Table(title=f"Parity with PyTorch, {mix.shape[1] / ort.sample_rate:.1f} s of {song.name}")
        table.add_column("stem")
        table.add_column("SNR against PyTorch (dB)", justify="right")
        for name in ort.sources:
            table.add_row(name, f"{Deviation.between(exported[name], reference[name]).snr:.1f}")
        console = Console()
        console.print(table)
        console.print(_latency(ort, torch, mix))
    console.print(
        "The model is the small one that comes with mrsep-deploy; its card, "
        "mrsep_deploy/bundle/shipped/MODEL_CARD.md, says how well it separates. "
        "The same two commands with your checkpoint: mrsep-deploy export CKPT.th, mrsep-deploy run SONG"
    )


def _latency(ort: Separator, torch: Separator, mix: NDArray[np.float32]) -> object:
    import numpy as np
    from rich.table import Table

    from mrsep_deploy.measuring.rounds import clocked, race

    model = ort.manifest.model
    segment = np.zeros((1, model.audio_channels, model.segment_samples), np.float32)
    segment[0, :, : mix.shape[1]] = mix[:, : model.segment_samples]
    contenders = {
        "ONNX Runtime": clocked(lambda _turn: ort.run_segments(segment)),
        "PyTorch eager": clocked(lambda _turn: torch.run_segments(segment)),
    }
    raced = race(contenders, ROUNDS, through=(Exception,))
    if raced.interrupted:
        raise KeyboardInterrupt
    times = raced.times
    seconds = float(model.segment)
    table = Table(
        title=f"Latency of one {seconds:.1f} s segment, {ROUNDS} rounds in turn, this machine as it is now"
    )
    for column in ("engine", "median (s)", "min to max (s)", "x realtime", "PyTorch / it"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    baseline = median(times["PyTorch eager"])
    for name, taken in times.items():
        middle = median(taken)
        spread = f"{min(taken):.2f} to {max(taken):.2f}"
        table.add_row(name, f"{middle:.2f}", spread, f"{seconds / middle:.2f}", f"{baseline / middle:.2f}")
    return table


if __name__ == "__main__":
    main()
