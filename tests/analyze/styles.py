"""Small networks in the styles that are in use, beside the single patterns of patterns.py.

Dimension key: B batch, C channels, S sequence, D features, E experts, I inner features.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class Experts(nn.Module):
    """route: how a token's two experts are picked and mixed."""

    def __init__(self, route: Callable[["Experts", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.router, self.head = nn.Linear(12, 10), nn.Linear(10, 6), nn.Linear(10, 3)
        self.up_EID, self.down_EDI = nn.Parameter(torch.randn(6, 8, 10)), nn.Parameter(torch.randn(6, 10, 8))
        self.route = route

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_BSD = self.up(x_BSD)
        return self.head(x_BSD + self.route(self, x_BSD, self.router(x_BSD)))


def picked(self: Experts, x_BSD: Tensor, scores_BSE: Tensor) -> Tensor:
    """The weights of the picked experts, one copy a token."""
    batch, length, _ = x_BSD.shape
    share, place = scores_BSE.softmax(-1).reshape(batch * length, 6).topk(2, -1)
    rows = x_BSD.reshape(-1, 10).repeat_interleave(2, 0)
    inner = functional.gelu(torch.bmm(self.up_EID[place.reshape(-1)], rows[..., None]))
    made = torch.bmm(self.down_EDI.index_select(0, place.flatten()), inner)[..., 0]
    return (made * (share / share.sum(-1, keepdim=True)).reshape(-1, 1)).reshape(batch, length, 2, 10).sum(2)


def scattered(self: Experts, x_BSD: Tensor, scores_BSE: Tensor) -> Tensor:
    """Every expert works; shares are 0 but for the picked ones."""
    share, place = scores_BSE.topk(2, -1)
    share_BSE = torch.zeros_like(scores_BSE).scatter(-1, place, share.softmax(-1))
    return _all_experts(self, x_BSD, share_BSE)


def counted(self: Experts, x_BSD: Tensor, scores_BSE: Tensor) -> Tensor:
    """One expert a token, as in Switch (Fedus et al. 2021, arXiv:2101.03961), by a vector of 0 and 1."""
    place = scores_BSE.argmax(-1)
    share = scores_BSE.softmax(-1).gather(-1, place[..., None])
    return _all_experts(self, x_BSD, functional.one_hot(place, 6) * share)


def dense(self: Experts, x_BSD: Tensor, scores_BSE: Tensor) -> Tensor:
    """No picking: a mixture of all experts."""
    return _all_experts(self, x_BSD, scores_BSE.softmax(-1))


def _all_experts(self: Experts, x_BSD: Tensor, share_BSE: Tensor) -> Tensor:
    inner_BSEI = functional.gelu(torch.einsum("bsd,eid->bsei", x_BSD, self.up_EID))
    return torch.einsum("bse,bsed->bsd", share_BSE, torch.einsum("bsei,edi->bsed", inner_BSEI, self.down_EDI))


class Broadcast(nn.Module):
    """A parameter of one position, one of every position, and a table of all."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 8), nn.Linear(8, 3)
        self.scale, self.gain, self.place = (nn.Parameter(torch.randn(*shape)) for shape in ((1,), (1, 8), (1, 7, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.scale * self.gain + self.place)


class Moved(nn.Module):
    """Operators that move or choose along another dimension than that of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        x = x.roll(1, 1).cumsum(1).flip(1)
        x = torch.where(x > 0, x, x * 0.1).masked_fill(x > 5, 0.0)
        x = torch.stack([x, x.square()], 1).unflatten(1, (2, 1)).sum((1, 2))
        x = functional.pad(x, (0, 0, 1, 1)).repeat_interleave(2, 1)[:, ::2]
        return self.down(x[:, :1].expand(-1, 9, -1) + x)


class Padded(nn.Module):
    """Channels of 0 appended to a shortcut (He et al. 2015, arXiv:1512.03385, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 10, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(functional.pad(x, (0, 0, 0, 0, 0, 4)) + self.wide(x))


class Unequal(nn.Module):
    """A chunk whose last part is shorter."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.one, self.two = nn.Linear(12, 7), nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.up(x).chunk(2, -1)
        return self.one(first) + self.two(second)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1))
        self.pooled, self.head = nn.Conv2d(3, 3, 1), nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(functional.max_pool2d(x, 3, 1, 1))
        x = torch.cat([self.one(x), self.three(x), pooled], 1)
        return self.head(functional.adaptive_avg_pool2d(torch.relu(x), 1).flatten(1))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are worked on, then both are shuffled (Ma et al. 2018, arXiv:1807.11164)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4))

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = self.stem(x).chunk(2, 1)
        x = torch.cat([kept, self.branch(worked)], 1)
        batch, channels, height, width = x.shape
        return self.head(x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width))


class Ghost(nn.Module):
    """Half of the features by a cheap depthwise convolution (Han et al. 2019, arXiv:1911.11907)."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.cheap = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.main(x))
        return self.head(torch.cat([x, torch.relu(self.cheap(x))], 1)[:, :12])


class MobileV3(nn.Module):
    """Inverted residual with squeeze-and-excite by hard functions (Howard et al. 2019, arXiv:1905.02244)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.narrow, self.head = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = functional.hardswish(self.depth(functional.hardswish(self.norm(self.wide(x)))))
        gate = self.excite(torch.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1))))
        return self.head(x + self.narrow(y * functional.hardsigmoid(gate)))


class Causal(nn.Module):
    """Dilated convolution that looks back, with weight norm (Bai et al. 2018, arXiv:1803.01271)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Conv1d(7, 6, 3, padding=4, dilation=2))
        self.second = parametrizations.weight_norm(nn.Conv1d(6, 8, 3, padding=4, dilation=2))
        self.shortcut, self.head = nn.Conv1d(7, 8, 1), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)[..., :-4])
        return self.head(torch.relu(self.second(y)[..., :-4]) + self.shortcut(x))


class Conformer(nn.Module):
    """The convolution module and half a feed-forward (Gulati et al. 2020, arXiv:2005.08100)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.point, self.depth = nn.Conv1d(8, 20, 1), nn.Conv1d(10, 10, 3, padding=1, groups=10)
        self.batch, self.out, self.head = nn.BatchNorm1d(10), nn.Conv1d(10, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.5 * self.down(functional.silu(self.up(self.norm(x))))
        y = functional.glu(self.point(x.transpose(1, 2)), 1)
        return self.head(x + self.out(functional.silu(self.batch(self.depth(y)))).transpose(1, 2))


class WaveNet(nn.Module):
    """Gated units with a residual and a skip path (van den Oord et al. 2016, arXiv:1609.03499)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gates = nn.Conv1d(7, 6, 1), nn.Conv1d(6, 16, 3, padding=1)
        self.residual, self.skip = nn.Conv1d(8, 6, 1), nn.Conv1d(8, 5, 1)
        self.again, self.mix, self.head = nn.Conv1d(6, 5, 1), nn.Conv1d(5, 4, 1), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        filtered, gate = self.gates(x).split(8, 1)
        y = torch.tanh(filtered) * torch.sigmoid(gate)
        return self.head(torch.relu(self.mix(torch.relu(self.skip(y) + self.again(x + self.residual(y))))))


class Reader(nn.Module):
    """Convolutions whose columns are a sequence (Shi et al. 2015, arXiv:1507.05717)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cell = nn.Conv2d(3, 6, 3, padding=1), nn.LSTM(6 * 4, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.conv(x)), (2, 1))
        return self.head(self.cell(x.permute(0, 3, 1, 2).flatten(2))[0])


class Mixer(nn.Module):
    """Layers along the patches and along the channels (Tolstikhin et al. 2021, arXiv:2105.01601)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.tokens = nn.Sequential(nn.Linear(16, 9), nn.GELU(), nn.Linear(9, 16))
        self.channels = nn.Sequential(nn.Linear(8, 14), nn.GELU(), nn.Linear(14, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norms[1](x))).mean(1))


class Points(nn.Module):
    """Shared layers, then the largest over the points, given back to each (Qi et al. 2016, arXiv:1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.wide, self.head = nn.Conv1d(7, 6, 1), nn.Conv1d(6, 9, 1), nn.Conv1d(15, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.relu(self.point(x))
        far = torch.max(self.wide(near), 2, keepdim=True)[0].repeat(1, 1, 12)
        return self.head(torch.cat([near, far], 1))


class Siamese(nn.Module):
    """One trunk used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 6))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.trunk(x), self.trunk(x.flip(1))
        return self.head(torch.cat([(left - right).abs(), left * right], -1))


class Pyramid(nn.Module):
    """Coarse maps resized and added to finer ones (Lin et al. 2016, arXiv:1612.03144)."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1, stride=2)
        self.sides = nn.ModuleList([nn.Conv2d(5, 6, 1), nn.Conv2d(7, 6, 1)])
        self.smooth, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.fine(x))
        coarse = self.sides[1](torch.relu(self.coarse(fine)))
        added = self.sides[0](fine) + functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.head(self.smooth(added)) + functional.interpolate(self.head(coarse), size=(8, 8), mode="bilinear")


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix, self.head = nn.Linear(12, 8), nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.head(x + self.mix(x, x, x, need_weights=False)[0])


class Encoder(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 14, batch_first=True, norm_first=causal, activation="gelu")
        self.up, self.head = nn.Linear(12, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(7) if self.causal else None
        return self.head(self.encoder(self.up(x), mask=mask, is_causal=self.causal))


class Projected(nn.Module):
    """The state has fewer units than the cell (Sak et al. 2014, arXiv:1402.1128)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.cell = nn.Linear(12, 9), nn.LSTM(9, 6, 2, bidirectional=True, batch_first=True, proj_size=4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.up(x))[0])


Expected = dict[str, tuple[int, int, str, bool]]
_ROWS, _IMAGE = (2, 7, 12), (2, 3, 8, 8)
_ENCODER: Expected = {
    "up": (8, 23, "channel", False),
    "encoder.layers.0.self_attn.in_proj_weight": (4, 3, "head", True),
    "encoder.layers.0.linear1": (14, 3, "neuron", True),
    "encoder.layers.1.self_attn.in_proj_weight": (4, 3, "head", True),
    "encoder.layers.1.linear1": (14, 3, "neuron", True),
}


def _experts(kind: str) -> Expected:
    return {"up": (10, 6, "channel", True), "router": (6, 4, kind, False), "up_EID": (8, 2, "neuron", True)}


# name, network, shape of its input, groups by name as (size, number of slices, kind, exact)
STYLES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], Expected]] = [
    ("experts picked by number", lambda: Experts(picked), _ROWS, _experts("expert")),
    ("experts whose shares are scattered", lambda: Experts(scattered), _ROWS, _experts("expert")),
    ("experts picked by a vector of 0 and 1", lambda: Experts(counted), _ROWS, _experts("expert")),
    ("a mixture of all experts", lambda: Experts(dense), _ROWS, _experts("channel")),
    ("broadcast parameters", Broadcast, _ROWS, {"up": (8, 5, "neuron", True)}),
    ("moved along other dimensions", Moved, _ROWS, {"up": (8, 3, "neuron", False)}),
    ("shortcut padded with zeros", Padded, _IMAGE, {"stem": (6, 6, "channel", True)}),
    ("chunks of unequal length", Unequal, _ROWS, {"up": (4, 3, "neuron", True), "up#2": (3, 3, "neuron", True)}),
    (
        "inception",
        Inception,
        _IMAGE,
        {
            "pooled": (3, 3, "channel", True),
            "one": (4, 3, "channel", True),
            "three.0": (5, 3, "channel", True),
            "three.2": (6, 3, "channel", True),
        },
    ),
    ("shuffle unit", ShuffleUnit, _IMAGE, {"stem": (4, 7, "channel", True), "stem#2": (4, 3, "channel", True)}),
    ("ghost module", Ghost, _IMAGE, {"main": (6, 5, "channel", True)}),
    (
        "inverted residual with hard functions",
        MobileV3,
        _IMAGE,
        {"stem": (6, 6, "channel", True), "wide": (12, 11, "channel", True), "squeeze": (4, 3, "channel", True)},
    ),
    (
        "weight norm, causal",
        Causal,
        _ROWS,
        {
            "first.parametrizations.weight.original0": (6, 4, "channel", False),
            "second.parametrizations.weight.original0": (8, 6, "channel", False),
        },
    ),
    (
        "conformer block",
        Conformer,
        _ROWS,
        {"stem": (8, 11, "channel", False), "up": (16, 3, "neuron", True), "point": (10, 9, "channel", True)},
    ),
    (
        "gated units with a skip path",
        WaveNet,
        _ROWS,
        {
            "stem": (6, 6, "channel", True),
            "gates": (8, 4, "channel", True),
            "skip": (5, 5, "channel", True),
            "mix": (4, 3, "channel", True),
        },
    ),
    (
        "convolutions read by a recurrence",
        Reader,
        (2, 3, 8, 6),
        {"conv": (6, 4, "channel", True), "cell.weight_ih_l0": (5, 11, "channel", True)},
    ),
    (
        "mixer",
        Mixer,
        _IMAGE,
        {"stem": (8, 10, "channel", False), "tokens.0": (9, 3, "neuron", True), "channels.0": (14, 3, "neuron", True)},
    ),
    ("largest over the points", Points, _ROWS, {"point": (6, 4, "channel", True), "wide": (9, 3, "channel", True)}),
    ("a trunk used twice", Siamese, _ROWS, {"trunk.0": (9, 3, "neuron", True), "trunk.2": (6, 3, "neuron", True)}),
    (
        "feature pyramid",
        Pyramid,
        _IMAGE,
        {"fine": (5, 4, "channel", True), "coarse": (7, 3, "channel", True), "sides.1": (6, 8, "channel", True)},
    ),
    (
        "attention module",
        MultiHead,
        _ROWS,
        {"up": (8, 6, "channel", True), "mix.in_proj_weight": (4, 3, "head", True)},
    ),
    ("transformer encoder", lambda: Encoder(causal=False), _ROWS, _ENCODER),
    ("causal transformer encoder", lambda: Encoder(causal=True), _ROWS, _ENCODER),
    (
        "lstm with projections",
        Projected,
        _ROWS,
        {
            "up": (9, 4, "channel", True),
            "cell.weight_ih_l0": (6, 20, "channel", True),
            "cell.weight_hr_l0": (4, 11, "channel", True),
        },
    ),
]
