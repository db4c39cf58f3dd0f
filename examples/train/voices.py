"""Something like a singer: vowels and consonants on random melodies, from a pulse and formants.

No freely licensed recordings of solo singing are in the registries, so this stands in for vocals: a glottal
pulse with vibrato and breath, shaped by four formants that move from vowel to vowel (frequencies of adult
speakers after Peterson and Barney, 1952), with bursts of noise for consonants. It teaches a network that vocals
are a harmonic voice in the middle with moving formants, and not more than that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal

SAMPLE_RATE = 44100
_WINDOW, _HOP = 1024, 256
_VOWELS = np.array(
    (
        (730, 1090, 2440, 3400),  # father
        (530, 1840, 2480, 3500),  # bet
        (270, 2290, 3010, 3700),  # see
        (570, 840, 2410, 3300),  # ought
        (300, 870, 2240, 3300),  # boot
        (660, 1720, 2410, 3500),  # bat
        (490, 1350, 1690, 3300),  # bird
        (640, 1190, 2390, 3400),  # but
    ),
    float,
)
_BRIGHT = 800.0  # Hz
_BANDWIDTHS = np.array((80, 100, 140, 220), float)
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 3, 5, 7, 10), (0, 2, 4, 7, 9))


def sing(seconds: float, random: np.random.Generator) -> NDArray[np.float32]:
    """A sung line with rests, ``[2, samples]``, the same in both ears."""
    samples = round(seconds * SAMPLE_RATE)
    low = random.random() < 0.5
    tract = random.uniform(0.9, 1.03) if low else random.uniform(1.08, 1.25)
    pitch, loudness, formants, noise = _score(samples, 45 if low else 57, tract, random)
    phase = np.cumsum(pitch / SAMPLE_RATE) % 1.0
    opening = float(random.uniform(0.5, 0.75))
    # The derivative of a glottal flow that opens along a raised cosine and closes at once.
    pulse = np.where(phase < opening, np.sin(2 * np.pi * phase / opening), 0.0)
    pulse -= (phase > opening * 0.92) & (phase < opening)
    breath = random.standard_normal(samples) * random.uniform(0.01, 0.08)
    voiced = (pulse + breath) * loudness
    line = _shape(voiced, formants, tract) + _consonants(noise, random)
    line = signal.sosfilt(signal.butter(2, 70, "highpass", fs=SAMPLE_RATE, output="sos"), line)
    line = line / max(float(np.abs(line).max()), 1e-9)
    return np.stack([line, line]).astype(np.float32)


def _score(
    samples: int, lowest: int, tract: float, random: np.random.Generator
) -> tuple[NDArray[np.float64], ...]:
    """Pitch in Hz, loudness, formants a frame ``[frames, 4]``, loudness of consonants; by note."""
    pitch, loudness = np.full(samples, 110.0), np.zeros(samples)
    noise = np.zeros(samples)
    formants = np.tile(_VOWELS[0], (samples // _HOP + 2, 1))
    scale, tonic = _SCALES[random.integers(len(_SCALES))], int(random.integers(12))
    beat = 60 / random.uniform(70, 140)
    degree, at = int(random.integers(4, 10)), 0
    while at < samples:
        length = int(beat * random.choice([0.5, 0.5, 1, 1, 1.5, 2, 3]) * SAMPLE_RATE)
        end = min(at + length, samples)
        if random.random() < 0.85:
            degree = int(np.clip(degree + random.integers(-2, 3), 0, 13))
            midi = lowest + tonic % 7 + 12 * (degree // len(scale)) + scale[degree % len(scale)]
            time = np.arange(end - at) / SAMPLE_RATE
            depth = random.uniform(0, 0.45) * np.clip((time - 0.15) / 0.3, 0, 1)
            vibrato = depth * np.sin(2 * np.pi * random.uniform(4.8, 6.5) * time)
            scoop = -random.uniform(0, 1.5) * np.exp(-time / 0.05)
            pitch[at:end] = 440 * 2 ** ((midi + vibrato + scoop - 69) / 12)
            loudness[at:end] = random.uniform(0.5, 1) * np.minimum(time / 0.04, 1)
            formants[at // _HOP : end // _HOP + 1] = _VOWELS[random.integers(len(_VOWELS))]
            if random.random() < 0.6:
                burst = min(int(random.uniform(0.03, 0.12) * SAMPLE_RATE), end - at)
                noise[at : at + burst] = np.hanning(burst) * random.uniform(0.1, 0.5)
                loudness[at : at + burst] *= np.linspace(0, 1, burst)
        at = end
    glide = signal.butter(1, 12, fs=SAMPLE_RATE, output="sos")
    loudness = np.maximum(signal.sosfiltfilt(glide, loudness), 0)
    pitch = np.exp(signal.sosfiltfilt(signal.butter(1, 20, fs=SAMPLE_RATE, output="sos"), np.log(pitch)))
    moving = signal.butter(1, 8, fs=SAMPLE_RATE / _HOP, output="sos")
    return pitch, loudness, signal.sosfiltfilt(moving, formants, axis=0) * tract, noise


def _shape(voice: NDArray[np.float64], formants: NDArray[np.float64], tract: float) -> NDArray[np.float64]:
    """Filter by formants that move: a product of resonances, frame by frame."""
    frequencies, _, frames = signal.stft(voice, SAMPLE_RATE, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
    response = np.ones((len(frequencies), frames.shape[1]))
    for index, bandwidth in enumerate(_BANDWIDTHS):
        centre = formants[np.minimum(np.arange(frames.shape[1]), len(formants) - 1), index]
        ratio = frequencies[:, None] / centre
        response /= np.sqrt((1 - ratio**2) ** 2 + (ratio * bandwidth * tract / centre) ** 2)
    # Four resonances alone fall too steeply above them, and the pulse is smoother than a voice's.
    response = np.maximum(response, 0.003) * (1 + frequencies[:, None] / _BRIGHT) ** 1.3
    _, shaped = signal.istft(frames * response, SAMPLE_RATE, nperseg=_WINDOW, noverlap=_WINDOW - _HOP)
    shaped = np.pad(shaped, (0, max(len(voice) - len(shaped), 0)))[: len(voice)]
    return np.asarray(shaped / (np.std(shaped) + 1e-12), np.float64)


def _consonants(loudness: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Hiss between 2 and 9 kHz."""
    low = random.uniform(1800, 4500)
    band = signal.butter(2, [low, low * 2], "bandpass", fs=SAMPLE_RATE, output="sos")
    hiss = signal.sosfilt(band, random.standard_normal(len(loudness)))
    return np.asarray(hiss / (np.std(hiss) + 1e-12) * loudness, np.float64)
