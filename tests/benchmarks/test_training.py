"""The training example: mixtures that repeat, resuming that changes nothing, weights that start as a mixture."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "train"))

import effects
import pack
from baselines import separate
from measures import improvement, sdr
from mixing import MixingPlan, MixtureDataset, validation_items
from network import configuration, new_model
from publish import publish
from store import SAMPLE_RATE, SOURCES, Entry, read_entries, write_entry
from trainer import Training, TrainingPlan
from voices import sing

from mrsep_deploy.export.load import load_model

SAMPLES = 8192
PLAN = TrainingPlan(
    steps=6,
    batch=2,
    segment=SAMPLES / SAMPLE_RATE,
    warm_up=2,
    network=(
        ("nfft_list", [512, 1024]),
        ("depth", 2),
        ("bottom_channels", 16),
        ("t_layers", 1),
        ("t_heads", 4),
    ),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    random = np.random.default_rng(1)
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    for split, names in (("train", ("one", "two", "three")), ("held_out", ("four",))):
        for index, name in enumerate(names):
            tone = np.sin(2 * np.pi * (60 + 11 * index) * time)
            stems = {
                "drums": random.standard_normal((2, len(time))) * np.exp(-(time % 0.4) * 20),
                "bass": np.stack([tone, tone]),
                "other": np.stack([np.sin(tone * 9), np.cos(tone * 7)]),
            }
            write_entry(
                folder, split, name, {k: v.astype(np.float32) for k, v in stems.items()}, True, {"song": name}
            )
    voice = sing(2.0, random)
    write_entry(folder, "train", "voice", {"vocals": voice}, False, {"song": "voice"})
    return folder


@pytest.fixture(scope="module")
def entries(store: Path) -> list[Entry]:
    return read_entries(store, "train")


def _training(entries: list[Entry], plan: TrainingPlan = PLAN) -> Training:
    return Training(plan, MixingPlan(), entries, torch.device("cpu"))


def _run(training: Training, until: int) -> None:
    for stems in training.batches(until, workers=0):
        training.take_step(stems)


# --- the store


def test_stored_stems_keep_their_balance(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    loud = random.standard_normal((2, SAMPLE_RATE)).astype(np.float32)
    silent = np.zeros_like(loud)
    write_entry(tmp_path, "train", "x", {"drums": loud, "bass": loud / 8, "other": silent}, True, {})
    (entry,) = read_entries(tmp_path, "train")
    drums, bass = entry.read("drums"), entry.read("bass")
    assert np.abs(drums).max() == pytest.approx(0.98, abs=1e-3)
    np.testing.assert_allclose(bass, drums / 8, atol=1e-4)
    assert not entry.read("other").any()
    assert entry.levels["drums"] == pytest.approx(float(drums.std()), rel=1e-2)


def test_what_is_silent_is_not_stored(tmp_path: Path) -> None:
    assert not write_entry(tmp_path, "train", "x", {"drums": np.zeros((2, 9), np.float32)}, True, {})
    assert read_entries(tmp_path, "train") == []


def test_a_packed_store_comes_back(store: Path, entries: list[Entry], tmp_path: Path) -> None:
    size = pack.pack(store, tmp_path / "pieces", 10**8)
    assert 0 < size < 10**7
    assert pack.unpack(tmp_path / "pieces", tmp_path / "store") == len(entries) + 1
    for before, after in zip(entries, read_entries(tmp_path / "store", "train"), strict=True):
        assert (after.name, after.whole, after.frames) == (before.name, before.whole, before.frames)
        source = "bass" if before.whole else "vocals"
        ours, theirs = (torch.from_numpy(entry.read(source)) for entry in (before, after))
        gain = before.levels[source] / after.levels[source]
        assert sdr(ours, theirs * gain) > 15


# --- mixtures


def test_a_mixture_depends_on_its_number_alone(entries: list[Entry]) -> None:
    first = MixtureDataset(entries, SAMPLES, 0, 6, 42, MixingPlan())
    later = MixtureDataset(entries, SAMPLES, 4, 2, 42, MixingPlan())
    torch.testing.assert_close(first[5], later[1], rtol=0, atol=0)
    assert not torch.equal(first[4], first[5])
    assert not torch.equal(first[0], MixtureDataset(entries, SAMPLES, 0, 1, 43, MixingPlan())[0])


def test_mixtures_are_normalised_and_have_all_sources(entries: list[Entry]) -> None:
    dataset = MixtureDataset(entries, SAMPLES, 0, 40, 42, replace(MixingPlan(), absent=(0, 0, 0, 0.5)))
    stems = torch.stack([dataset[index] for index in range(40)])
    assert stems.shape == (40, len(SOURCES), 2, SAMPLES)
    torch.testing.assert_close(stems.sum(dim=1).flatten(1).std(dim=1), torch.ones(40), atol=1e-2, rtol=0)
    sounding = (stems.flatten(2).std(dim=2) > 1e-4).float().mean(dim=0)
    assert sounding[:3].min() > 0.8
    assert 0.2 < sounding[3] < 0.8


def test_a_whole_song_keeps_to_its_own_stems(entries: list[Entry]) -> None:
    alone = [entry for entry in entries if entry.name in ("one", "voice")]
    plan = MixingPlan(1, (0, 0, 0, 1), 0, 1, 0, 0, 0)
    stems = MixtureDataset(alone, SAMPLES, 0, 1, 42, plan)[0]
    spectrum = np.abs(np.fft.rfft(stems[1].numpy().sum(axis=0) * np.hanning(SAMPLES)))
    assert spectrum.argmax() * SAMPLE_RATE / SAMPLES == pytest.approx(60, abs=6)


def test_an_empty_store_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no songs"):
        MixtureDataset([], SAMPLES, 0, 1, 42, MixingPlan())


def test_a_bell_lifts_its_frequency() -> None:
    section = effects.biquad("bell", 1000, 6, 1.0)
    delay = np.exp(-2j * np.pi * np.array([50, 1000]) / SAMPLE_RATE)
    powers = np.stack([delay**0, delay, delay**2])
    response = 20 * np.log10(np.abs((section[:3] @ powers) / (section[3:] @ powers)))
    np.testing.assert_allclose(response, [0, 6], atol=0.1)


def test_twice_the_speed_is_an_octave() -> None:
    tone = np.sin(2 * np.pi * 500 * np.arange(2 * SAMPLES + 1) / SAMPLE_RATE)
    fast = effects.change_speed(np.stack([tone, tone]).astype(np.float32), 2.0, SAMPLES)
    expected = np.sin(2 * np.pi * 1000 * np.arange(SAMPLES) / SAMPLE_RATE)
    np.testing.assert_allclose(fast[0], expected, atol=2e-3)


# --- training


def test_the_network_starts_by_passing_the_mixture(entries: list[Entry]) -> None:
    torch.manual_seed(0)
    dataset = MixtureDataset(entries, SAMPLES, 0, 2, 42, MixingPlan())
    mixture = torch.stack([dataset[0], dataset[1]]).sum(dim=1)
    model = new_model(configuration(PLAN.segment, **dict(PLAN.network)), mixture)
    with torch.no_grad():
        total = model(mixture).sum(dim=1)
    assert sdr(mixture, total * (total * mixture).sum() / total.square().sum()) > 6


def test_training_lowers_the_error(entries: list[Entry]) -> None:
    training = _training(entries, replace(PLAN, rate=3e-3, steps=60))
    batch = next(training.batches(1, workers=0))
    before = training.take_step(batch)["loss"]
    for _ in range(25):
        after = training.take_step(batch)["loss"]
    assert after < 0.8 * before


def test_every_weight_gets_a_gradient(entries: list[Entry]) -> None:
    training = _training(entries)
    training.take_step(next(training.batches(1, workers=0)))
    without = [name for name, weight in training.model.named_parameters() if weight.grad is None]
    assert without == []


def test_a_resumed_run_ends_as_one_that_never_stopped(entries: list[Entry], tmp_path: Path) -> None:
    straight, stopped = _training(entries), _training(entries)
    _run(straight, 6)
    _run(stopped, 3)
    stopped.save(tmp_path / "state.pt")
    resumed = _training(entries)
    resumed.load(tmp_path / "state.pt")
    assert resumed.step == 3
    _run(resumed, 6)
    for name, weight in straight.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], weight, rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [tmp_path / "state.pt"]


def test_a_state_of_another_run_is_refused(entries: list[Entry], tmp_path: Path) -> None:
    _training(entries).save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="seed=42, this run has 7"):
        _training(entries, replace(PLAN, seed=7)).load(tmp_path / "state.pt")


def test_the_rate_rises_and_falls() -> None:
    plan = TrainingPlan(steps=100, warm_up=10, rate=1.0, last_rate=0.1)
    rates = [plan.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX")
def test_a_signal_to_the_whole_group_saves_the_state(store: Path, tmp_path: Path) -> None:
    """As a terminal sends Ctrl-C: the process that makes mixtures must not fall before the step is done."""
    script = Path(effects.__file__).with_name("train.py")
    options = (
        "--segment",
        "0.5",
        "--batch",
        "1",
        "--steps",
        "100000",
        "--threads",
        "1",
        "--save-every",
        "1e6",
    )
    process = subprocess.Popen(
        [sys.executable, str(script), "--store", str(store), str(tmp_path / "run"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        assert any('"event": "step"' in line for line in lines)
        os.killpg(process.pid, signal.SIGINT)
        rest = list(lines)
        assert process.wait(60) == 0, rest
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert '"event": "stop"' in rest[-1]
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] >= 25


# --- what comes out


def test_the_checkpoint_is_read_as_a_published_one(store: Path, entries: list[Entry], tmp_path: Path) -> None:
    training = _training(entries)
    _run(training, 2)
    training.save(tmp_path / "state.pt")
    publish(tmp_path / "state.pt", tmp_path / "model.th", segment=PLAN.segment)
    loaded = load_model(tmp_path / "model.th")
    assert loaded.config.family == "mrhdemucs"
    assert loaded.config.sources == SOURCES
    assert loaded.origin["checkpoint"]["storage"] == ["float16"]  # type: ignore[index]
    mixture = validation_items(read_entries(store, "held_out"), PLAN.segment, 1)[0].sum(dim=0)[None]
    with torch.no_grad():
        ours, theirs = training.average(mixture), loaded.model(mixture)
    assert sdr(ours, theirs) > 45
    again = _training(entries)
    again.start_from(loaded.model.state_dict())
    assert again.step == 0


def test_the_gain_is_over_the_mixture(store: Path) -> None:
    items = validation_items(read_entries(store, "held_out"), 1.0, 2)
    perfect = improvement([stems * 0.9 for stems in items], items, SOURCES)
    assert set(perfect) == {"drums", "bass", "other"}
    assert perfect["bass"]["sdr"] == pytest.approx(20, abs=0.1)
    assert perfect["bass"]["gain"] == pytest.approx(20 - perfect["bass"]["mixture"], abs=0.2)


def test_the_baseline_tells_a_low_tone_from_clicks() -> None:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    bass = np.stack([np.sin(2 * np.pi * 80 * time)] * 2).astype(np.float32)
    drums = np.zeros_like(bass)
    drums[:, 2000 :: SAMPLE_RATE // 3] = 10
    found = separate(bass + drums)
    assert sdr(torch.from_numpy(bass), torch.from_numpy(found["bass"])) > 10
    assert sdr(torch.from_numpy(drums), torch.from_numpy(found["drums"])) > 5
    np.testing.assert_allclose(sum(found.values()), bass + drums, atol=1e-5)
