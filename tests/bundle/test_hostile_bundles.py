"""Bundles made to do harm, or broken on the way: each ends in a BundleError that names the trouble."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import repeat_graph, tiny_bundle, tiny_manifest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from mrsep_deploy.bundle import Bundle, write_archive
from mrsep_deploy.bundle.onnx_scan import check_self_contained
from mrsep_deploy.errors import BundleError, MrsepError

GRAPH = "branch.16.onnx"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRSEP_DEPLOY_HOME", str(tmp_path / "home"))
    return tiny_bundle(tmp_path).path


def refused(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix


# --- folders -----------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside.onnx"
    path.rename(outside)
    path.symlink_to(outside)


def swap_for(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def swap(path: Path) -> None:
        path.unlink()
        make(path)

    return swap


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "branch.16.onnx is missing"),
        (lambda path: path.write_bytes(b""), "branch.16.onnx has 0 bytes, expected"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "branch.16.onnx has .* bytes, expected"),
        (flip, "branch.16.onnx has sha256 .*, expected"),
        (link_out, "branch.16.onnx is a link that leaves the bundle"),
        (swap_for(lambda path: path.symlink_to("/dev/zero")), "is a link that leaves the bundle"),
        (swap_for(lambda path: path.symlink_to(path.name)), "branch.16.onnx cannot be read"),
        (swap_for(os.mkfifo), "branch.16.onnx is not a regular file"),
        (swap_for(Path.mkdir), "branch.16.onnx is not a regular file"),
    ],
)
def test_harmed_file(folder: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(folder / GRAPH)
    refused(folder, message)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "manifest.json is missing"),
        (lambda path: path.write_bytes(b""), "manifest is not valid JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "manifest is not UTF-8"),
        (lambda path: path.write_bytes(b" " * (16 * 2**20 + 1)), "expected at most 16777216"),
        (link_out, "manifest.json is a link that leaves the bundle"),
        (swap_for(os.mkfifo), "manifest.json is not a regular file"),
    ],
)
def test_harmed_manifest(folder: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(folder / "manifest.json")
    refused(folder, message)


def test_link_within_is_followed(folder: Path) -> None:
    (folder / GRAPH).rename(folder / "real")
    (folder / GRAPH).symlink_to("real")
    assert Bundle.open(folder)


def test_not_a_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "there is nothing, expected a bundle")
    refused(tmp_path / ("x" * 5000), "there is nothing")
    refused(tmp_path, "manifest.json is missing")
    (tmp_path / "model.th").write_bytes(b"x")
    refused(tmp_path / "model.th", "neither a folder nor a .zip")
    os.mkfifo(tmp_path / "pipe.zip")
    refused(tmp_path / "pipe.zip", "neither a folder nor a .zip")


def test_unverified_bundle_checks_what_it_hands_out(folder: Path) -> None:
    flip(folder / GRAPH)
    bundle = Bundle.open(folder, verify=False)
    good, bad = bundle.manifest.graph_stages[1], bundle.manifest.graph_stages[0]
    assert bundle.graph_bytes(good)
    for use in (bundle.graph_bytes, bundle.graph_path):
        with pytest.raises(BundleError, match="sha256"):
            use(bad)


def test_graph_changed_after_opening(folder: Path) -> None:
    bundle = Bundle.open(folder)
    flip(folder / GRAPH)
    with pytest.raises(BundleError, match="sha256"):
        bundle.graph_bytes(bundle.manifest.graph_stages[0])


# --- archives ----------------------------------------------------------------------------------------------

Member = tuple[zipfile.ZipInfo, bytes]


def repacked(folder: Path, change: Callable[[list[Member]], object]) -> Path:
    """The folder as a zip after ``change`` has had its way with the members."""
    members: list[Member] = [
        (zipfile.ZipInfo(path.name), path.read_bytes()) for path in sorted(folder.iterdir())
    ]
    change(members)
    target = folder.parent / "tiny.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for info, data in members:
            archive.writestr(info, data, info.compress_type)
    return target


def add(name: str, data: bytes = b"x", **attributes: int) -> Callable[[list[Member]], None]:
    def change(members: list[Member]) -> None:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # past the constructor, which cleans names
        for key, value in attributes.items():
            setattr(info, key, value)
        members.append((info, data))

    return change


def deflate(members: list[Member]) -> None:
    for info, _ in members:
        info.compress_type = zipfile.ZIP_DEFLATED


def bomb(members: list[Member]) -> None:
    add("zeros.bin", bytes(70 * 2**20))(members)
    deflate(members)


def in_folder(name: str) -> Callable[[list[Member]], None]:
    def change(members: list[Member]) -> None:
        for info, _ in members:
            info.filename = f"{name}/{info.filename}"
        members.insert(0, (zipfile.ZipInfo(f"{name}/"), b""))

    return change


@pytest.mark.parametrize(
    "change", [deflate, in_folder("tiny"), in_folder("Ä model"), add("notes/README.txt")]
)
def test_honest_archives(folder: Path, change: Callable[[list[Member]], object]) -> None:
    assert Bundle.open(repacked(folder, change)).digest == Bundle.open(folder).digest


def test_mac_archive(folder: Path) -> None:
    def change(members: list[Member]) -> None:
        in_folder("tiny")(members)
        add("__MACOSX/tiny/._manifest.json")(members)

    assert Bundle.open(repacked(folder, change))


SYMLINK = 0o120777 << 16


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("../evil"), "'../evil' has a name that leaves"),
        (add("a/../../evil"), "has a name that leaves"),
        (add("/etc/evil"), "has a name that leaves"),
        (add("..\\evil"), "backslash"),
        (add("C:/evil"), "colon"),
        (add("a\nb"), "control characters"),
        (add("a\0b"), "control characters"),
        (add(GRAPH), "twice"),
        (add("MANIFEST.json"), "twice"),
        (add("link", b"/etc/passwd", external_attr=SYMLINK), "is a link or a device"),
        (add("x", b"x", compress_type=zipfile.ZIP_BZIP2), "compression method 12"),
        (bomb, "claims to unpack"),
        (lambda members: members.clear(), "has none, expected a manifest.json"),
        (lambda members: members.pop(0), "branch.16.onnx is missing"),
        (lambda members: members.extend([(zipfile.ZipInfo(f"{i}"), b"") for i in range(1025)]), "members"),
        (lambda members: members.__setitem__(0, (members[0][0], b"short")), "has 5 bytes, expected"),
        (lambda members: members.__setitem__(0, (members[0][0], bytes(len(members[0][1])))), "sha256"),
        (lambda members: [in_folder("a")(members), add("b/manifest.json")(members)], "2 folders with one"),
        (lambda members: [in_folder("a/b")(members)], "has none, expected a manifest.json"),
    ],
)
def test_hostile_archive(folder: Path, change: Callable[[list[Member]], object], message: str) -> None:
    refused(repacked(folder, change), message)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny", "tiny.zip"], (
        "nothing is unpacked"
    )


def patched(folder: Path, change: Callable[[bytearray], object]) -> Path:
    target = write_archive(Bundle.open(folder), folder.parent / "tiny.zip")
    data = bytearray(target.read_bytes())
    change(data)
    target.write_bytes(data)
    return target


def encrypt(data: bytearray) -> None:
    """Set the flag in every local (at 6) and central (at 8) header."""
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        while start >= 0:
            data[start + at] |= 1
            start = data.find(signature, start + 4)


def understate(data: bytearray) -> None:
    """Let the central directory claim another size for the graph, here of what the manifest says plus one."""
    start = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 4)
    data[start + 24] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (encrypt, "is encrypted"),
        (understate, "bytes, expected"),
        (lambda data: data.clear(), "damaged or not a zip"),
        (lambda data: data.__delitem__(slice(len(data) - 30, None)), "damaged or not a zip"),
        (lambda data: data.__delitem__(slice(0, 200)), "damaged or not a zip"),
        (lambda data: data.__setitem__(60, data[60] ^ 1), "damaged or not a zip: Bad CRC"),
    ],
)
def test_broken_archive(folder: Path, change: Callable[[bytearray], object], message: str) -> None:
    refused(patched(folder, change), message)


def test_fuzzed_archive(folder: Path) -> None:
    """Any few bytes changed or cut: the same bundle, or an MrsepError."""
    good = Bundle.open(folder)
    target = write_archive(good, folder.parent / "tiny.zip")
    whole = target.read_bytes()
    randomly = random.Random(7)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(randomly.randint(1, 4)):
            data[randomly.randrange(len(data))] = randomly.choice([0, 1, 0x7F, 0xFF, randomly.randrange(256)])
        if randomly.random() < 0.3:
            del data[randomly.randrange(len(data)) :]
        target.write_bytes(data)
        try:
            bundle = Bundle.open(target)
        except MrsepError:
            continue
        for stage in good.manifest.graph_stages:
            assert bundle.graph_bytes(stage) == good.graph_bytes(stage)


# --- graphs ------------------------------------------------------------------------------------------------


def external_tensor() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def honest() -> onnx.ModelProto:
    manifest = tiny_manifest()
    return repeat_graph(manifest.tensor("waveform"), manifest.tensor("estimate_time"))


def as_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external_tensor())


def without_location(model: onnx.ModelProto) -> None:
    tensor = external_tensor()
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


def without_data(model: onnx.ModelProto) -> None:
    tensor = external_tensor()
    tensor.ClearField("external_data")
    model.graph.initializer.append(tensor)


def as_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(external_tensor())


def as_sparse_indices(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(external_tensor())


def as_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external_tensor()))


def as_attribute_list(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(
        AttributeProto(name="list", type=AttributeProto.TENSORS, tensors=[external_tensor()])
    )


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [external_tensor()])
    for depth in range(5):
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner)
        inner = helper.make_graph([node], f"inner{depth}", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], else_branch=inner))


def in_graph_list(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [external_tensor()])
    model.graph.node[0].attribute.append(
        AttributeProto(name="list", type=AttributeProto.GRAPHS, graphs=[inner])
    )


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=external_tensor())
    model.functions.append(helper.make_function("mine", "f", [], ["c"], [node], []))


def in_function_default(model: onnx.ModelProto) -> None:
    function = helper.make_function("mine", "f", [], [], [], [])
    function.attribute_proto.append(helper.make_attribute("value", external_tensor()))
    model.functions.append(function)


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(external_tensor())


@pytest.mark.parametrize(
    "hide",
    [
        *(as_initializer, without_location, without_data, as_sparse, as_sparse_indices, as_attribute),
        *(as_attribute_list, in_subgraph, in_graph_list, in_function, in_function_default, in_training),
    ],
)
def test_external_data_is_found(hide: Callable[[onnx.ModelProto], None]) -> None:
    model = honest()
    check_self_contained(model.SerializeToString(), "g.onnx")
    hide(model)
    with pytest.raises(BundleError, match=r"g\.onnx reads weights from another file"):
        check_self_contained(model.SerializeToString(), "g.onnx")


def test_foreign_engine_is_found() -> None:
    model = honest()
    model.graph.node.append(helper.make_node("EPContext", [], ["y"], domain="com.microsoft"))
    with pytest.raises(BundleError, match="EPContext"):
        check_self_contained(model.SerializeToString(), "g.onnx")


def test_bundle_with_external_data(folder: Path) -> None:
    """Hashes that fit do not help: a bundle from a stranger is consistent with itself."""
    model = onnx.load(folder / GRAPH)
    as_initializer(model)
    data = model.SerializeToString()
    (folder / GRAPH).write_bytes(data)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["files"][GRAPH] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(tree))
    refused(folder, "reads weights from another file")
    bundle = Bundle.open(folder, verify=False)
    for use in (bundle.graph_bytes, bundle.graph_path):
        with pytest.raises(BundleError, match="another file"):
            use(bundle.manifest.graph_stages[0])


def nested(levels: int) -> bytes:
    """A graph within a node's attribute, over and over."""
    inner = b""
    for _ in range(levels):
        for number in (6, 5, 1):  # attribute.g, node.attribute, graph.node
            inner = bytes([number << 3 | 2]) + varint(len(inner)) + inner
    return bytes([7 << 3 | 2]) + varint(len(inner)) + inner


def varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no graph"),
        (b"\x08\x07", "holds no graph"),
        (b"\x3a", "does not end"),
        (b"\x3a\x05\x00", "beyond"),
        (b"\x3a" + b"\xff" * 12, "does not end"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "beyond"),
        (b"\x3b", "wire type 3"),
        (b"\x39\x00", "beyond"),
        (b"PK\x03\x04", "is not an ONNX graph"),
        (b'{"json": 1}', "is not an ONNX graph"),
        (nested(40), "nested deeper than 64 levels"),
        (nested(20_000), "nested deeper than 64 levels"),
        (b"\x3a" + varint(2**22) + b"\x08\x01" * 2**21, "more than 2000000 fields"),
    ],
)
def test_garbage_graph(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_self_contained(data, "g.onnx")


def test_fuzzed_graph() -> None:
    """Wherever onnx itself still finds no external data, neither is it found here; nothing else escapes."""
    whole = honest().SerializeToString()
    randomly = random.Random(7)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(randomly.randint(1, 3)):
            data[randomly.randrange(len(data))] = randomly.randrange(256)
        try:
            check_self_contained(bytes(data), "g.onnx")
        except BundleError:
            continue
        try:
            model = onnx.load_from_string(bytes(data))
        except Exception:
            continue
        assert not any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer)


def test_large_graph_is_quick() -> None:
    """100 MB of weights are stepped over, not read."""
    model = honest()
    weights = numpy_helper.from_array(np.zeros(25 * 2**20, np.float32), "w")
    model.graph.initializer.append(weights)
    data = model.SerializeToString()
    start = time.perf_counter()
    check_self_contained(data, "g.onnx")
    assert time.perf_counter() - start < 0.5
