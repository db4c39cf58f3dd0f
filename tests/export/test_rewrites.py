"""Each rewrite, and all together: the same function, no less precise, and simpler where it says so."""

from __future__ import annotations

import itertools

import pytest
import torch
from demucs.demucs import DConv as PublishedDConv
from models import DEMUCS, MODELS, make, named, noise, randomise, relative, rewritten, staged
from torch import Tensor, fx, nn

from mrsep_deploy.export.families.demucs.attention import LinearAttention, SoftmaxAttention
from mrsep_deploy.export.families.demucs.layers import DConv
from mrsep_deploy.export.families.demucs.rewrite_attention import MeanAttention, SeparateAttention
from mrsep_deploy.export.families.demucs.rewrite_layers import (
    DConv2d,
    GroupedNorm,
    mean_in_steps,
    spelled_norm,
)
from mrsep_deploy.export.families.demucs.transformer import TokenGroupNorm, TransformerLayer

# Rewrites work constants out in float64 and round them to float32 once, 6e-8 at most and independent of
# each other. Norms and the two dozen layers of a small model carry that to about 3e-7 of the output.
ROUNDED_ONCE = 1e-6

REWRITES = tuple(DEMUCS.rewrites)

ALONE = ["htdemucs", "htdemucs-dconv-3", "htdemucs-merged", "htdemucs_nn", "htdemucs_nf"]
"""Models that between them have something for every rewrite to do, with and without norms in its way."""


def assert_same_function(name: str, rewrites: tuple[str, ...]) -> None:
    model = named(name)
    mix = noise(2, 2, model.config.segment_samples)
    assert relative(rewritten(model, rewrites).double()(mix), model.double()(mix)) < ROUNDED_ONCE


@pytest.mark.parametrize("name", MODELS)
def test_rewritten_models_are_the_same_function(name: str) -> None:
    assert_same_function(name, tuple(REWRITES))


@pytest.mark.parametrize("name", [*ALONE, "htdemucs-group-norms", "htdemucs_n", "htdemucs_dnf"])
def test_norms_alone_are_the_same_function(name: str) -> None:
    """Spelling out the norms, which no choice turns off, rounds nothing: float64 stays float64."""
    model = named(name).double()
    mix = noise(2, 2, model.config.segment_samples)
    # SteppedNorm holds weights in float32; those of the model are float32 numbers to begin with.
    assert relative(rewritten(model, ()).double()(mix), model(mix)) < 1e-12


@pytest.mark.parametrize("alone", REWRITES)
@pytest.mark.parametrize("name", ALONE)
def test_each_rewrite_alone_is_the_same_function(name: str, alone: str) -> None:
    assert_same_function(name, (alone,))


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(itertools.combinations(REWRITES, 2)), ids="+".join)
@pytest.mark.parametrize("name", ALONE)
def test_rewrites_do_not_depend_on_each_other(name: str, pair: tuple[str, str]) -> None:
    assert_same_function(name, pair)


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_as_good_as_the_models_own(name: str) -> None:
    """In float32, no more than twice what the model as published loses against float64.

    Below 1e-6 both are rounding of the last operations, and their ratio is chance.
    """
    model = named(name)
    mix = noise(2, 2, model.config.segment_samples, dtype=torch.float32)
    single, ours = model(mix), rewritten(model)(mix)
    exact = model.double()(mix.double())
    assert relative(ours, exact) < max(2 * relative(single, exact), 1e-6)


def test_the_model_itself_stays_as_it_is() -> None:
    model = named("htdemucs_nn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mix = noise(1, 2, model.config.segment_samples, dtype=torch.float32)
    expected = model(mix)
    rewritten(model)
    assert torch.equal(model(mix), expected)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_unknown_rewrites_are_named() -> None:
    with pytest.raises(ValueError, match="unknown rewrites \\['winograd'\\], expected some of"):
        rewritten(named("htdemucs"), ["glu", "winograd"])


# --- DConv: the statistics of the wide features from the narrow ones


def dconv_pair(channels: int, comp: float, depth: int, seed: int = 0) -> tuple[PublishedDConv, DConv2d]:
    published = PublishedDConv(channels, compress=comp, depth=depth, init=1e-3, gelu=True).eval()
    randomise(published, seed)
    ours = DConv(channels, depth, comp)
    ours.load_state_dict(published.state_dict())
    return published.double(), DConv2d(ours).double()


def per_bin(module: nn.Module, x: Tensor) -> Tensor:
    """The published class on every bin of ``[B, C, F, T]``, as the published encoder calls it."""
    b, c, f, t = x.shape
    return module(x.permute(0, 2, 1, 3).reshape(b * f, c, t)).view(b, f, c, t).permute(0, 2, 1, 3)


SHAPES = [(2, 8, 5, 21), (1, 8, 5, 1), (1, 8, 1, 21), (2, 8, 1, 1), (3, 8, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("depth", [0, 1, 2, 4, -3])
@pytest.mark.parametrize("comp", [8, 4, 2, 1, 0.4])
def test_dconv(comp: float, depth: int, shape: tuple[int, ...]) -> None:
    """All compressions, from one hidden channel to more hidden channels than the wide layer has."""
    published, ours = dconv_pair(shape[1], comp, depth)
    x = noise(*shape)
    assert relative(ours(x), per_bin(published, x)) < ROUNDED_ONCE


@pytest.mark.parametrize("depth", [2, -2])
def test_dconv_along_time(depth: int) -> None:
    published, ours = dconv_pair(8, 2, depth)
    x = noise(2, 8, 100)
    assert relative(ours(x), published(x)) < ROUNDED_ONCE


def adversarial(kind: str, shape: tuple[int, ...]) -> Tensor:
    x = noise(*shape)
    if kind == "offset":
        return x + 1e4
    if kind == "tiny":
        return 1e-6 * x
    if kind == "tiny-on-offset":
        return 1 + 1e-5 * x
    if kind == "silent":
        return torch.zeros(shape, dtype=torch.float64)
    if kind == "constant-in-time":
        return x[..., :1].expand(shape).contiguous()
    if kind == "one-spike":
        spike = torch.zeros(shape, dtype=torch.float64)
        spike[..., 0] = 1e3
        return spike
    return x * torch.logspace(-6, 6, shape[2], dtype=torch.float64)[:, None]


KINDS = ["offset", "tiny", "tiny-on-offset", "silent", "constant-in-time", "one-spike", "loud-and-quiet-bins"]


@pytest.mark.parametrize("kind", KINDS)
def test_dconv_on_adversarial_inputs(kind: str) -> None:
    """Bin by bin, so that a loud one does not hide a quiet one; relative to the residual, not the input."""
    published, ours = dconv_pair(16, 4, 2)
    x = adversarial(kind, (2, 16, 4, 40))
    expected, found = per_bin(published, x) - x, ours(x) - x
    for f in range(x.shape[2]):
        # The residual is a difference against the input: float64 leaves 1e-16 of that.
        cancelled = 1e-14 * float(x[:, :, f].norm())
        distance = float((found[:, :, f] - expected[:, :, f]).norm())
        assert distance < ROUNDED_ONCE * float(expected[:, :, f].norm()) + cancelled


@pytest.mark.parametrize("kind", KINDS)
def test_dconv_in_float32(kind: str) -> None:
    """No worse than twice the published class in float32, on the inputs that are hard for both."""
    published, ours = dconv_pair(16, 4, 2)
    x = adversarial(kind, (2, 16, 4, 40)).float().double()
    exact = per_bin(published, x)
    own = relative(per_bin(published.float(), x.float()), exact)
    assert relative(ours.float()(x.float()), exact) < max(2 * own, 3e-7)


def test_dconv_with_a_large_mean_in_the_hidden_features() -> None:
    """Means far above the spread are where E[x^2] - E[x]^2 would fail; the algebra centres first."""
    published, ours = dconv_pair(16, 4, 1)
    for layer in published.layers:
        layer[1].bias.fill_(200.0)
    ours = DConv2d(published.float()).double()  # type: ignore[arg-type]
    x = noise(1, 16, 3, 50)
    assert relative(ours(x), per_bin(published.double(), x)) < ROUNDED_ONCE
    single = per_bin(published.float(), x.float())
    exact = per_bin(published.double(), x)
    assert relative(ours.float()(x.float()), exact) < max(2 * relative(single, exact), 3e-7)


# --- norms and attention


@pytest.mark.parametrize("shape", [(2, 12, 50), (2, 12, 5, 9), (2, 12, 1), (3, 12, 1, 1)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3, 12])
def test_group_norms(groups: int, shape: tuple[int, ...]) -> None:
    norm = nn.GroupNorm(groups, 12)
    randomise(norm)
    x = 3 + noise(*shape)
    ours = spelled_norm(norm)
    assert isinstance(ours, GroupedNorm)
    assert relative(ours.double()(x), norm.double()(x)) < 1e-12


@pytest.mark.parametrize("shape", [(2, 50, 12), (1, 1, 12)], ids=str)
def test_norms_over_tokens(shape: tuple[int, ...]) -> None:
    norm = TokenGroupNorm(1, 12)
    randomise(norm)
    x = 3 + noise(*shape)
    assert relative(spelled_norm(norm).double()(x), norm.double()(x)) < 1e-12


def test_means_in_steps_keep_their_digits() -> None:
    """A float32 mean over a million samples with an offset, within one rounding of the exact mean."""
    x = (100 + noise(1, 4, 512, 500)).float()
    exact = x.double().mean()
    assert abs(float(mean_in_steps(x, 3, 2, 1)) - float(exact)) < 6e-8 * float(exact)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_softmax_attention_against_torchs_own(cross: bool) -> None:
    attention = SoftmaxAttention(12, 3)
    reference = nn.MultiheadAttention(12, 3, batch_first=True)
    randomise(attention)
    reference.load_state_dict(attention.state_dict())
    query = noise(2, 7, 12)
    memory = noise(2, 11, 12, seed=2) if cross else query
    separate = SeparateAttention(attention).double()
    expected = reference.double()(query, memory, memory, need_weights=True)[0]
    assert relative(separate(query, memory), expected) < 1e-12
    assert relative(attention.double()(query, memory), expected) < 1e-12


@pytest.mark.parametrize("tokens", [64, 4000])
@pytest.mark.parametrize("cross", [False, True])
def test_linear_attention_by_means(tokens: int, cross: bool) -> None:
    """The same function, and no sum grows with the tokens: what is divided stays far below float16's 65,504."""
    attention = LinearAttention(192, 8).double()
    randomise(attention)
    memory = torch.randn(2, tokens, 192, dtype=torch.float64)
    query = torch.randn(2, 50, 192, dtype=torch.float64) if cross else memory
    means = MeanAttention(attention)
    assert relative(means(query, memory), attention(query, memory)) < 1e-12


def test_linear_attention_is_a_weighted_mean() -> None:
    """Against its definition with all weights written out: phi(q) phi(k)^T, rows divided by their sums."""
    attention = LinearAttention(12, 3)
    randomise(attention)
    attention.double()
    query, memory = noise(2, 7, 12), noise(2, 11, 12, seed=2)

    def heads(x: Tensor) -> Tensor:
        return torch.stack(x.split(4, dim=-1), dim=1)

    def phi(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    weights = phi(heads(attention.q(query))) @ phi(heads(attention.k(memory))).transpose(-1, -2)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    expected = torch.cat((weights @ heads(attention.v(memory))).unbind(1), dim=-1)
    assert relative(attention(query, memory), attention.proj(expected)) < 1e-12


@pytest.mark.parametrize("name", ["htdemucs", "htdemucs_n", "htdemucs-group-norms"])
def test_layer_scales_are_folded_away(name: str) -> None:
    for layer in rewritten(named(name), ["attention"]).modules():
        if isinstance(layer, TransformerLayer):
            assert isinstance(layer.gamma_1, nn.Identity)
            assert isinstance(layer.gamma_2, nn.Identity)


# --- what is left in the graph


def traced(part: nn.Module, inputs: list[Tensor]) -> tuple[fx.Graph, set[fx.Node]]:
    """The traced graph, and its nodes that depend on no input: constants that a graph would work out."""
    program = torch.export.export(part.eval(), tuple(inputs))
    user = set(program.graph_signature.user_inputs)
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        placeholder = node.op == "placeholder" and node.name not in user
        if placeholder or (node.op == "call_function" and set(node.all_input_nodes) <= constant):
            constant.add(node)
    return program.graph, constant


def operations(nodes: set[fx.Node]) -> set[str]:
    return {str(node.target).removeprefix("aten.") for node in nodes if node.op == "call_function"}


TRACED: dict[str, tuple[str, dict[str, object]]] = {
    "softmax": ("htdemucs", {"nfft": 256, "bottom_channels": 8, "t_layers": 2, "t_heads": 2}),
    "linear": ("htdemucs_nn", {"nfft_list": [128, 256], "t_layers": 2, "t_heads": 2}),
    "merged": ("htdemucs", {"nfft": 64, "t_layers": 0, "depth": 3}),
    "unet": ("htdemucs_dnf", {"nfft_list": [128, 256], "t_channels": 4}),
}
"""Tracing takes most of a second per layer, so these are as small as they get."""


def traced_core(name: str, *rewrites: str) -> tuple[fx.Graph, set[fx.Node]]:
    family, arguments = TRACED[name]
    model = make(family, {"depth": 2, "dconv_depth": 1, "segment": 1.024, **arguments})
    config = model.config
    inputs = [
        torch.randn(1, 2 * config.audio_channels, n // 2, -(-config.segment_samples // hop))
        for n, hop in zip(config.nfft_list, config.hops, strict=True)
    ]
    if config.waveform:
        inputs.append(torch.randn(1, config.audio_channels, config.segment_samples))
    stages = staged(rewritten(model, rewrites), "whole").stages
    return traced(next(s.module for s in stages if s.stage.name == "core"), inputs)


@pytest.mark.parametrize("name", TRACED)
def test_graphs_hold_constants_and_take_nothing_apart(name: str) -> None:
    """Parameters are only viewed, but for the sum of time and frequency positions; nothing is sliced.

    The segment of 2048 samples divides by every stride: where it does not, a crop to the length remains.
    """
    graph, constant = traced_core(name, *REWRITES)
    assert operations(constant) <= {"view.default", "unsqueeze.default", "add.Tensor"}
    additions = [node for node in constant if node.target == torch.ops.aten.add.Tensor]
    assert len(additions) == (1 if name in ("softmax", "linear") else 0)
    found = {operation.partition(".")[0] for operation in operations(set(graph.nodes))}
    assert not found & {"slice", "chunk", "split", "select", "index", "sin", "cos", "arange", "glu", "to"}


def test_graphs_that_are_not_rewritten_do_work_constants_out() -> None:
    """The test above can fail: without rewrites, positions, weights and halves are computed."""
    graph, constant = traced_core("linear")
    assert {"sin.default", "cos.default", "softmax.int", "mul.Tensor"} <= operations(constant)
    assert "glu.default" in operations(set(graph.nodes))


@pytest.mark.parametrize("name", ["htdemucs", "htdemucs-merged", "htdemucs_2nn", "htdemucs_dnf"])
def test_stages_of_a_rewritten_model_take_the_same_tensors(name: str) -> None:
    model = staged(named(name))
    expected = [source.stage for source in model.stages]
    DEMUCS.rewrite(model.model, REWRITES)
    assert [source.stage for source in model.stages] == expected
    ours = [source.stage for source in staged(rewritten(named(name))).stages]
    assert [(s.name, s.inputs, s.outputs) for s in ours] == [(s.name, s.inputs, s.outputs) for s in expected]
