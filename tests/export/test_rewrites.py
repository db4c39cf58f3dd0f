"""Each rewrite, and all together: the same function, no less precise, and simpler where it says so."""

from __future__ import annotations

import itertools

import pytest
import torch
from demucs.demucs import DConv as PublishedDConv
from mrsep_deploy.export.models.attention import LinearAttention, SoftmaxAttention
from mrsep_deploy.export.models.layers import DConv
from mrsep_deploy.export.models.transformer import TokenGroupNorm, TransformerLayer
from mrsep_deploy.export.parts import Core, Part
from mrsep_deploy.export.rewrite_attention import SeparateAttention
from mrsep_deploy.export.rewrite_layers import DConv2d, GroupedNorm, mean_in_steps, spelled_norm
from mrsep_deploy.export.rewrites import REWRITES, rewrite
from mrsep_deploy.export.split import Splitter
from torch import Tensor, fx, nn

from models import MODELS, named, noise, randomise, relative

# Rewrites work constants out in float64 and round them to float32 once, 6e-8 at most and independent of
# each other. Norms and the two dozen layers of a small model carry that to about 3e-7 of the output.
ROUNDED_ONCE = 1e-6

CHOICES: dict[str, tuple[str, ...]] = {
    "none": (),
    **{name: (name,) for name in REWRITES},
    "all": tuple(REWRITES),
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", MODELS)
def test_rewritten_models_are_the_same_function(name: str, choice: str) -> None:
    model = named(name)
    mix = noise(2, 2, model.config.segment_samples)
    rewritten = rewrite(model, CHOICES[choice])
    assert relative(rewritten.double()(mix), model.double()(mix)) < ROUNDED_ONCE


@pytest.mark.parametrize("name", MODELS)
def test_float32_is_as_good_as_the_models_own(name: str) -> None:
    """In float32, no more than twice what the model as published loses against float64.

    Below 1e-6 both are rounding of the last operations, and their ratio is chance.
    """
    model = named(name)
    mix = noise(2, 2, model.config.segment_samples, dtype=torch.float32)
    single, rewritten = model(mix), rewrite(model)(mix)
    exact = model.double()(mix.double())
    assert relative(rewritten, exact) < max(2 * relative(single, exact), 1e-6)


def test_the_model_itself_stays_as_it_is() -> None:
    model = named("htdemucs_nn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mix = noise(1, 2, model.config.segment_samples, dtype=torch.float32)
    expected = model(mix)
    rewrite(model)
    assert torch.equal(model(mix), expected)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_unknown_rewrites_are_named() -> None:
    with pytest.raises(ValueError, match="unknown rewrites \\['winograd'\\], expected some of"):
        rewrite(named("htdemucs"), ["glu", "winograd"])


# --- DConv: the statistics of the wide features from the narrow ones


def dconv_pair(channels: int, comp: float, depth: int, seed: int = 0) -> tuple[PublishedDConv, DConv2d]:
    published = PublishedDConv(channels, compress=comp, depth=depth, init=1e-3, gelu=True).eval()
    randomise(published, seed)
    ours = DConv(channels, depth, comp)
    ours.load_state_dict(published.state_dict())
    return published.double(), DConv2d(ours).double()


def per_bin(module: nn.Module, x: Tensor) -> Tensor:
    """The published class on every bin of ``[B, C, F, T]``."""
    return torch.stack([module(x[:, :, f]) for f in range(x.shape[2])], dim=2)


SHAPES = [(2, 8, 5, 21), (1, 8, 5, 1), (1, 8, 1, 21), (1, 8, 1, 1), (3, 8, 2, 2)]


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


@pytest.mark.parametrize("shape", [(2, 12, 50), (2, 12, 5, 9), (1, 12, 1), (3, 12, 1, 1)], ids=str)
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
    for layer in rewrite(named(name), ["attention"]).modules():
        if isinstance(layer, TransformerLayer):
            assert isinstance(layer.gamma_1, nn.Identity)
            assert isinstance(layer.gamma_2, nn.Identity)


# --- what is left in the graph


def traced(part: Part, inputs: list[Tensor]) -> tuple[fx.Graph, set[fx.Node]]:
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


def core_inputs(name: str) -> list[Tensor]:
    config = named(name).config
    inputs = [
        torch.randn(1, 2 * config.audio_channels, n // 2, -(-config.segment_samples // hop))
        for n, hop in zip(config.nfft_list, config.hops, strict=True)
    ]
    wave = [torch.randn(1, config.audio_channels, config.segment_samples)] if config.waveform else []
    return inputs + wave


SHAPING = {"view.default", "unsqueeze.default", "add.Tensor"}


@pytest.mark.parametrize("name", MODELS)
def test_graphs_hold_constants_not_their_making(name: str) -> None:
    """Nothing is worked out from parameters but views, and the sum of time and frequency positions."""
    model = named(name)
    _, constant = traced(Core(rewrite(model)), core_inputs(name))
    assert operations(constant) <= SHAPING
    additions = [node for node in constant if node.target == torch.ops.aten.add.Tensor]
    assert len(additions) == (1 if model.crosstransformer is not None else 0)


@pytest.mark.parametrize("name", MODELS)
def test_graphs_have_no_slices(name: str) -> None:
    """Neither of parameters nor of activations, but for the crop to a length the stride does not divide."""
    graph, _ = traced(Core(rewrite(named(name))), core_inputs(name))
    found = operations(set(graph.nodes))
    for operation in ("chunk", "split", "select", "index", "sin", "cos", "arange", "glu", "to"):
        assert not any(target.split(".")[0] == operation for target in found), (operation, found)
    model = named(name)
    cropped = any(
        length % shape.stride
        for length, shape in zip(model.plan.waveform_lengths, model.plan.waveform, strict=True)
    )
    assert cropped or not any(target.startswith("slice") for target in found - {"slice.Tensor"})


def test_the_unwritten_graph_does_work_them_out() -> None:
    """The two tests above can fail: without rewrites, positions, weights and halves are computed."""
    graph, constant = traced(Core(rewrite(named("htdemucs_n"), [])), core_inputs("htdemucs_n"))
    found = operations(constant)
    assert {"sin.default", "cos.default", "softmax.int", "mul.Tensor"} <= found
    assert "glu.default" in operations(set(graph.nodes))


@pytest.mark.parametrize("pair", list(itertools.combinations(REWRITES, 2)), ids="+".join)
def test_rewrites_do_not_depend_on_each_other(pair: tuple[str, str]) -> None:
    model = named("htdemucs_nn")
    mix = noise(1, 2, model.config.segment_samples)
    rewritten = rewrite(model, pair).double()
    assert relative(rewritten(mix), model.double()(mix)) < ROUNDED_ONCE


@pytest.mark.parametrize("name", ["htdemucs", "htdemucs-merged", "htdemucs_2nn", "htdemucs_dnf"])
def test_stages_of_a_rewritten_model_take_the_same_tensors(name: str) -> None:
    model, rewritten = named(name), rewrite(named(name))
    ours = [plan.stage for plan in Splitter(rewritten).split("split")]
    assert ours == [plan.stage for plan in Splitter(model).split("split")]
