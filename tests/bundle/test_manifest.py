"""A manifest survives its way through JSON, and nothing else gets in."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from bundles import tiny_manifest, transform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrsep_deploy.bundle.manifest import Branch, FileInfo, Manifest, ModelInfo, Stage, TensorSpec
from mrsep_deploy.bundle.manifest_json import from_json, to_json
from mrsep_deploy.errors import BundleError, MrsepError

FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

# no reserved word begins with z
names = st.text(string.ascii_lowercase + string.digits + "_", max_size=7).map("z".__add__)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
free_json = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Valid manifests: some resolutions, one graph each, summed."""
    sources = tuple(draw(st.lists(names, min_size=1, max_size=4, unique=True)))
    channels = draw(st.integers(1, 3))
    rate, samples = draw(st.sampled_from([8000, 44100, 48000])), draw(st.integers(1, 500_000))
    gain = st.floats(-2, 2)
    branches = [
        Branch(name, tuple(draw(gain) for _ in sources), transform(n_fft, n_fft // 4, samples))
        for name in draw(st.lists(names, min_size=1, max_size=3, unique=True))
        for n_fft in [draw(st.sampled_from([16, 2048]))]
    ]
    stems = (1, len(sources), channels, samples)
    tensors, stages, files, signals = [TensorSpec("mix", (1, channels, samples))], [], {}, []
    for index, branch in enumerate(branches):
        x, stats, y, signal = (f"{what}.{index}" for what in ("x", "stats", "y", "signal"))
        assert branch.transform is not None
        size = (branch.transform.bins, branch.transform.frames)
        tensors += [
            TensorSpec(x, (1, 2 * channels, *size)),
            TensorSpec(stats, (1, 2)),
            TensorSpec(y, (1, 2 * channels * len(sources), *size), "float16"),
            TensorSpec(signal, stems),
        ]
        file = f"graph.{index}.onnx"
        files[file] = FileInfo(f"{draw(st.integers(0, 2**256 - 1)):064x}", draw(st.integers(0, 2**31)))
        macs = draw(st.integers(0, 2**50))
        stages += [
            Stage(f"spectrogram.{index}", "spectrogram", branch.name, ("mix",), (x, stats)),
            Stage(f"graph.{index}", "graph", branch.name, (x,), (y,), file, index, macs),
            Stage(f"inverse.{index}", "inverse", branch.name, (y, stats), (signal,)),
        ]
        signals.append(signal)
    tensors.append(TensorSpec("stems", stems))
    stages.append(Stage("sum", "sum", "shared", tuple(signals), ("stems",)))
    free = st.dictionaries(st.text("abc", max_size=4), free_json, max_size=3)
    segment = Fraction(samples, rate)
    info = ModelInfo("HTDemucs", sources, rate, channels, segment, samples, True, 7, draw(free))
    return Manifest(
        name=draw(names), model=info, branches=tuple(branches), tensors=tuple(tensors), stages=tuple(stages),
        layout=draw(st.sampled_from(["split", "whole"])), opset=draw(st.integers(7, 30)),
        precision="float32", files=files, checks=draw(free), provenance=draw(free),
    )  # fmt: skip


@FUZZ
@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    text = to_json(manifest)
    assert from_json(text) == manifest
    assert to_json(from_json(text)) == text


def test_text_is_for_people() -> None:
    lines = to_json(tiny_manifest()).splitlines()
    assert lines[:3] == ["{", '  "format": "mrsep-deploy bundle",', '  "format_version": 2,']
    assert '    "segment": "1/125",' in lines
    assert '    {"name": "mix", "shape": ["batch", 2, 64], "dtype": "float32"},' in lines
    assert '    "config": {"depth": 1, "note": "naïve"}' in lines
    assert max(map(len, lines)) <= 160


def test_fraction_in_config_is_text() -> None:
    manifest = tiny_manifest()
    model = replace(manifest.model, config={"segment": Fraction(39, 5), "list": (1, 2)})
    assert from_json(to_json(replace(manifest, model=model))).model.config == {
        "segment": "39/5",
        "list": [1, 2],
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", object(), {1: 2}, {"a": {3}}])
def test_unwritable_value_is_named(value: object) -> None:
    with pytest.raises(BundleError, match=r"manifest\.checks"):
        to_json(replace(tiny_manifest(), checks={"bad": value}))


def test_rules_of_the_family_survive_the_file() -> None:
    rules = {
        "norms": {"branch.16": ()},
        "last": {"branch.16": ("a.*/Conv", "b/*"), "branch.time": ("*",)},
        "fold": {},
    }
    manifest = replace(tiny_manifest(), float32=rules)
    assert from_json(to_json(manifest)) == manifest
    assert '"float32":' not in to_json(tiny_manifest())


def test_what_few_models_need_is_left_out_elsewhere() -> None:
    """A context around segments, and a synthesis that is late: fields without them are what they were."""
    plain = tiny_manifest()
    assert not {"context", "delay"} & set(re.findall(r'"(\w+)":', to_json(plain)))
    (first, *others), offset = plain.branches, plain.branches[0].transform.offset  # type: ignore[union-attr]
    assert first.transform is not None
    late = replace(first, transform=replace(first.transform, envelope="extended", delay=offset))
    manifest = replace(plain, branches=(late, *others), application=replace(plain.application, context=16))
    assert from_json(to_json(manifest)) == manifest
    assert (manifest.kept_samples, manifest.branches[0].transform.lead) == (48, 0)  # type: ignore[union-attr]


def changed(change: Callable[[Any], None]) -> str:
    tree = json.loads(to_json(tiny_manifest()))
    change(tree)
    return json.dumps(tree)


def put(*path: Any) -> Callable[[Any], None]:
    """``put("model", "segment", "0")`` sets ``tree["model"]["segment"] = "0"``."""
    *keys, last, value = path

    def change(tree: Any) -> None:
        for key in keys:
            tree = tree[key]
        tree[last] = value

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]

    return change


def test_a_transform_may_have_a_file() -> None:
    """Its device form; only listed ones (see ``REFUSED``)."""
    found = from_json(changed(put("stages", 6, "file", "branch.16.onnx")))
    assert found.stages[6].kind == "sum"
    assert found.stages[6].file == "branch.16.onnx"


INFO = {"sha256": "0" * 64, "bytes": 1}
LEAVING = ("../up", "/etc/passwd", "a/b", "a\\b", "C:x", "C:\\x", "a\0b", "a\nb", "..", ".", "", "-x")
RESERVED = ("manifest.json", "MANIFEST.JSON", "nul", "Con.onnx", "x.")
REFUSED = [
    (put("float32", []), "float32 is \\[\\], expected an object"),
    (put("float32", {"last": {"core": "a/*"}}), r"float32\['last'\]\['core'\] is 'a/\*', expected"),
    (put("float32", {"last": {"core": [1]}}), r"float32\['last'\]\['core'\]\[0\] is 1, expected"),
    (
        put("float32", {"last": {"core": ["a"] * 257}}),
        r"float32\['last'\]\['core'\] has 257 entries, expected 0 to 256",
    ),
    (put("float32", {"a\x1b[2J": {}}), r"float32.*a\\x1b.*expected"),
    (put("format", "zip"), "manifest.format is 'zip'"),
    (put("format_version", 3), "format version 3, this mrsep-deploy reads version 2. Upgrade"),
    (
        put("format_version", 1),
        "format version 1, this mrsep-deploy reads version 2. Export the checkpoint again",
    ),
    (put("format_version", "1"), "manifest.format_version is '1'"),
    (put("format_version", True), "manifest.format_version is True"),
    (put("extra", 1), "unknown field 'extra'"),
    (put("model", "extra", 1), "model has an unknown field 'extra'"),
    (drop("opset"), "no field 'opset'"),
    (drop("model", "segment"), "model has no field 'segment'"),
    (put("model", []), "manifest.model is \\[\\], expected an object"),
    (put("name", "../x"), "manifest.name is '../x'"),
    (put("name", "x\n"), "manifest.name"),
    (put("name", ".hidden"), "manifest.name"),
    (put("layout", "both"), "manifest.layout is 'both', expected one of split, whole"),
    (put("layout", ["split"]), "manifest.layout"),
    (put("batch", 1), "manifest has an unknown field 'batch'"),
    (put("model", "trained", 1), "model.trained is 1, expected true or false"),
    (put("model", "sources", []), "model.sources has 0 entries"),
    (put("model", "sources", ["a", "a"]), "lists 'a' twice in model.sources"),
    (put("model", "sources", ["a", "A"]), "twice in model.sources"),
    (put("model", "sources", ["a", "b/c"]), "model.sources"),
    (put("model", "sources", ["a", "nul"]), "'nul', which cannot name a file"),
    (put("model", "segment", 7.8), "model.segment is 7.8, expected seconds as a fraction"),
    (put("model", "segment", "1/0"), "model.segment is '1/0'"),
    (put("model", "segment", "0"), "model.segment is 0 s"),
    (put("model", "segment", "9999999"), "model.segment"),
    (put("model", "segment", "1"), "model.segment_samples is 64, expected 8000"),
    (put("model", "sample_rate", 0), "model.sample_rate"),
    (put("branches", 0, "gains", [1.0]), "branch '16' has 1 gains"),
    (put("branches", 0, "gains", [1.0, "x"]), "branches\\[0\\].gains"),
    (put("branches", 0, "gains", [1.0, True]), "branches\\[0\\].gains"),
    (put("branches", 0, "transform", "hop", 17), "branch '16' has hop 17 and 8 bins"),
    (put("branches", 0, "transform", "hop", 9), "branch '16' has hop 9 and 8 bins"),
    (put("branches", 0, "transform", "bins", 7), "branch '16' has hop 4 and 7 bins"),
    (put("branches", 0, "transform", "n_fft", 17), "impossible for n_fft 17"),
    (
        put("branches", 0, "transform", "n_fft", 2**21),
        "transform.n_fft is 2097152, expected a whole number from 2",
    ),
    (put("branches", 0, "transform", "offset", 16), "branch '16' has offset 16, expected 0 to 15"),
    (put("branches", 0, "transform", "after", 0), "branch '16' has 16 frames over 76 samples and after 0"),
    (put("branches", 0, "transform", "after", 2**20), "and after 1048576, expected to cover 64 samples"),
    (put("branches", 0, "transform", "frames", 14), "branch '16' has 14 frames"),
    (put("branches", 0, "transform", "frames", 2**31), "branch '16' has 2147483648 frames"),
    (
        put("branches", 0, "transform", "window", "kaiser"),
        "transform.window is 'kaiser', expected one of hann",
    ),
    (put("branches", 0, "transform", "scale", 1), "transform.scale is 1, expected one of orthonormal, none"),
    (put("branches", 0, "transform", "padding", ""), "expected one of reflect, zeros"),
    (put("branches", 0, "transform", "envelope", None), "expected one of endless, frames"),
    (put("branches", 0, "transform", "delay", 4), "has a delay of 4 and an envelope of 'endless' frames"),
    (put("branches", 0, "transform", "delay", -1), "transform.delay is -1"),
    (put("application", "context", 64), "application.context is 64, expected less than 64 samples"),
    (put("application", "context", -1), "application.context is -1"),
    (put("branches", 0, "normalise", False), "has 1 inputs and 2 outputs, expected 1 outputs and one other"),
    (put("branches", 0, "normalise", 1), "normalise is 1, expected true or false"),
    (put("branches", 0, "name", "shared"), "branch 'shared'"),
    (put("branches", 0, "name", "time"), "lists 'time' twice in branches"),
    (put("branches", 1, "transform", 0), "branches\\[1\\].transform is 0, expected an object"),
    (put("tensors", 1, "shape", ["batch", 0]), "tensors\\[1\\].shape"),
    (put("tensors", 1, "shape", []), "tensors\\[1\\].shape has 0 entries"),
    (
        put("tensors", 1, "shape", [1, 64]),
        "tensors\\[1\\].shape is \\[1, 64\\], expected 'batch' and whole numbers",
    ),
    (
        put("tensors", 1, "shape", ["batch", 2**16, 2**16]),
        "tensors\\[1\\].shape .* at most 2147483648 elements",
    ),
    (put("tensors", 1, "dtype", "object"), "tensors\\[1\\].dtype"),
    (put("tensors", 0, "dtype", "float16"), "tensor 'mix' is float16"),
    (put("tensors", 1, "name", "mix"), "lists 'mix' twice"),
    (put("tensors", 1, "name", "x"), "uses 'spectrogram_16', which manifest.tensors does not list"),
    (put("stages", 0, "kind", "shell"), "stages\\[0\\].kind"),
    (put("stages", 0, "branch", "32"), "branch '32', expected a listed branch"),
    (put("stages", 0, "branch", "shared"), "expected a listed branch"),
    (put("stages", 0, "branch", "time"), "'time' is no spectrogram branch"),
    (put("stages", 1, "branch", "16"), "'16' is no waveform branch"),
    (put("stages", 2, "branch", "32"), "expected 'shared' or a listed branch"),
    (put("stages", 2, "file", "other.onnx"), "'other.onnx', expected one listed"),
    (drop("stages", 2, "file"), "stage 'branch.16' has the file None"),
    (put("stages", 6, "file", "other.onnx"), "stage 'fusion' has the file 'other.onnx', expected one listed"),
    (put("stages", 2, "inputs", ["estimate_16"]), "which no earlier stage writes"),
    (put("stages", 2, "inputs", ["signal_16"]), "which no earlier stage writes"),
    (put("stages", 2, "inputs", []), "stages\\[2\\].inputs has 0 entries"),
    (put("stages", 2, "outputs", ["mix"]), "writes 'mix', which already exists"),
    (put("stages", 3, "outputs", ["estimate_16"]), "writes 'estimate_16', which already exists"),
    (put("stages", 2, "name", "fusion"), "lists 'fusion' twice in stages"),
    (put("stages", 2, "macs", -1), "stages\\[2\\].macs"),
    (put("stages", []), "manifest.stages has 0 entries"),
    (drop("stages", 6), "no stage writes 'stems'"),
    (
        lambda t: t["tensors"].append({"name": "z", "shape": ["batch"], "dtype": "int64"}),
        "'z', which no stage",
    ),
    (lambda t: t.update(stages=t["stages"] * 10), "manifest.stages has 70 entries, expected 1 to 64"),
    (put("fusion", 0, "weights", [[1.0]]), "fusion\\[0\\].weights .* 2 rows"),
    (put("fusion", 0, "weights", [[1.0], [1.0, 2.0]]), "rows of one length"),
    (put("fusion", 0, "sources", ["drums", "voice"]), "source 'voice'"),
    (put("files", "branch.16.onnx", "sha256", "A" * 64), "sha256"),
    (put("files", "branch.16.onnx", "bytes", 2**40), "bytes"),
    (put("files", "branch.16.onnx", None), "expected an object"),
    (put("files", "BRANCH.16.onnx", INFO), "twice in files"),
    *((put("files", name, INFO), "manifest.files: a key is .*, expected up to 128") for name in LEAVING),
    *((put("files", name, INFO), "reserved") for name in RESERVED),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        from_json(changed(change))
    assert caught.value.fix


def test_unknown_keys_where_they_belong() -> None:
    manifest = from_json(changed(lambda t: [t[k].update(new=[{}]) for k in ("checks", "provenance")]))
    assert manifest.checks["new"] == manifest.provenance["new"] == [{}]


VALID = to_json(tiny_manifest())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "manifest.format is \\[\\]"),
        ("null", "manifest.format"),
        (VALID[:-3], "not valid JSON"),
        (VALID + VALID, "not valid JSON"),
        (VALID.replace('"opset": 17', '"opset": 17, "opset": 17'), "'opset' appears twice"),
        (VALID.replace("1e-06", "NaN"), "NaN is not a number"),
        (VALID.replace("1e-06", "-Infinity"), "-Infinity is not a number"),
        (VALID.replace("1e-06", "1e999"), "'1e999' is out of range"),
        (VALID.replace("1e-06", "1" * 50_000), "has 50000 digits"),
        (VALID.replace("1e-06", "[" * 100_000 + "]" * 100_000), "nested deeper than 48"),
        (VALID.replace("1e-06", "[" * 60 + "]" * 60), "nested deeper than 48"),
        (VALID.replace("naïve", "\\ud800"), "not Unicode"),
        (" " * (16 * 2**20) + VALID, "expected at most 16777216"),
        ("\ufeff" + VALID, "not valid JSON"),
    ],
)
def test_hostile_text(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        from_json(text)


@FUZZ
@given(st.data())
def test_any_changed_field_is_read_or_refused(data: st.DataObject) -> None:
    """Replace one value anywhere by something else: a valid manifest or a BundleError, nothing else."""
    tree = json.loads(VALID)
    node, depth = tree, data.draw(st.integers(0, 4))
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if depth == 0 or not isinstance(node[key], (dict, list)) or not node[key]:
            break
        node, depth = node[key], depth - 1
    node[key] = data.draw(free_json)
    with suppress(MrsepError):
        assert isinstance(from_json(json.dumps(tree)), Manifest)


@FUZZ
@given(st.integers(0, len(VALID) - 1), st.integers(0, 20), st.text(max_size=4))
def test_any_changed_text_is_read_or_refused(at: int, cut: int, insert: str) -> None:
    with suppress(MrsepError):
        assert isinstance(from_json(VALID[:at] + insert + VALID[at + cut :]), Manifest)
