"""What an audio file says about itself, and the bounds of what is believed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mrsep_deploy.errors import AudioError

Samples: TypeAlias = npt.NDArray[np.float32]
"""Audio as float32 ``[channels, frames]``, full scale is ±1."""

MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 1_000_000
MAX_CHANNELS = 64


@dataclass(frozen=True)
class AudioInfo:
    """A file's own statement about its audio, before anything is converted.

    Attributes:
        sample_rate: in Hz.
        frames: samples per channel at ``sample_rate``. Good for a progress bar and to notice that some are
            missing: a header may promise more than a cut file holds. None where the file does not say.
        format: container and codec as their library names them, such as ``WAV PCM_16``.
        layout: names of the channels in order, in FFmpeg's words (``FL``, ``FC``, ``LFE``); empty if unknown.
        estimated: ``frames`` comes from a bit rate or the like; the file does not state it.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int | None
    format: str
    layout: tuple[str, ...] = ()
    estimated: bool = False

    def check_unchanged(self, sample_rate: int, channels: int, done: int) -> None:
        """Refuse a file that goes on in another rate or with other channels after ``done`` frames."""
        if (sample_rate, channels) != (self.sample_rate, self.channels):
            raise AudioError(
                f"{self.path} changes to {sample_rate} Hz, {channels} channels after "
                f"{done / self.sample_rate:.2f} s, expected {self.sample_rate} Hz, {self.channels} channels throughout",
                "Convert it to WAV first",
            )


class DamagedAudio(AudioError):
    """Part of a song is missing or cannot be decoded; what there is of it has been read.

    Attributes:
        what: is wrong with it, as a sentence goes on after its name.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} {what}", "Get the file again, or take what is there with run --allow-damaged"
        )
        self.what = what


def check_file(path: Path) -> None:
    """Refuse what no decoder should be handed: only a regular, readable file with bytes in it passes.

    A pipe or a device could block for ever, and can in any case not be read a second time.

    Raises:
        AudioError: ``path`` is anything else.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise AudioError(f"{path} is a directory, not an audio file", "Name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(
                f"{path} is a pipe or a device; a song is read twice and has to be a file",
                "Save it to a file first",
            )
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise AudioError(f"{path} does not exist", "Check the path") from error
    except PermissionError as error:
        raise AudioError(f"{path} may not be read by this user", "Change its permissions") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise AudioError(f"{path} cannot be opened: {error}", "Check the path") from error
    if status.st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes)", "Get the file again")


def native(path: Path) -> str | bytes:
    """A path as libsndfile's wrapper takes it: names that are not Unicode too, where systems have them."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def check_info(info: AudioInfo) -> None:
    """Refuse a header that can only be damage.

    Raises:
        AudioError: the sample rate is outside 1 kHz to 1 MHz, the channels outside 1 to 64, or the file
            states that it holds no samples.
    """
    wrong = ""
    if not MIN_SAMPLE_RATE <= info.sample_rate <= MAX_SAMPLE_RATE:
        wrong = f"a sample rate of {info.sample_rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
    elif not 1 <= info.channels <= MAX_CHANNELS:
        wrong = f"{info.channels} channels, expected 1 to {MAX_CHANNELS}"
    if wrong:
        fix = "The header is damaged or the file is not audio; export it again"
        raise AudioError(f"{info.path} states {wrong}", fix)
    if info.frames == 0:
        raise no_samples(info.path)


def no_samples(path: Path) -> AudioError:
    return AudioError(f"{path} holds no samples", "The recording is empty or cut off; get the file again")
