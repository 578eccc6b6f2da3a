"""One small network for each way in which channels are coupled, with the channel groups that it has.

Dimension key: B batch, C channels, S sequence, D features, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Pattern:
    """groups: by name, its (size, number of slices, kind, exact)."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, ...]]
    groups: dict[str, tuple[int, int, str, bool]]


def image(channels: int = 3, size: int = 8) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, size, size),)


def rows() -> tuple[Tensor, ...]:
    return (torch.randn(2, 7, 12),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 11, (2, 7)),)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.back = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(x + self.back(torch.relu(self.inner(x))))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


class Gated(nn.Module):
    def __init__(self, chunks: bool) -> None:
        super().__init__()
        self.up, self.down, self.chunks = nn.Linear(12, 20), nn.Linear(10, 3), chunks

    def forward(self, x: Tensor) -> Tensor:
        if not self.chunks:
            return self.down(functional.glu(self.up(x)))
        gate, value = self.up(x).chunk(2, -1)
        return self.down(torch.sigmoid(gate) * value)


class Split(nn.Module):
    """Two parts that go different ways: one sum of parts, cut apart."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.one, self.two = nn.Linear(12, 10), nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.up(x).split([4, 6], -1)
        return self.one(first) + self.two(second[..., 0:])


class Transposed(nn.Module):
    """Channels last, as ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.gelu(self.mix(self.stem(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head(x * gate[:, :, None, None])


class Embedded(nn.Module):
    """Pre-norm block on a table of embeddings; the norm counts channels, so that zeroing differs from cutting."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 12), norm(12)
        self.up, self.down, self.head = nn.Linear(12, 9), nn.Linear(9, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(11, 12), nn.Linear(12, 12), nn.Linear(12, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.table(x))))


class Attention(nn.Module):
    """fused: one weight for q, k and v. manual: softmax written out. kv_heads: fewer than heads for grouped queries."""

    def __init__(self, fused: bool = False, manual: bool = False, kv_heads: int = 4, repeats: bool = False) -> None:
        super().__init__()
        self.fused, self.manual, self.kv_heads, self.repeats = fused, manual, kv_heads, repeats
        if fused:
            self.qkv = nn.Linear(12, 3 * 4 * 5)
        else:
            self.query, self.key, self.value = nn.Linear(12, 20), nn.Linear(12, 5 * kv_heads), nn.Linear(12, 5 * kv_heads)
        self.out = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.fused:
            query, key, value = self.qkv(x).view(batch, length, 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            query = self.query(x).view(batch, length, 4, 5).transpose(1, 2)
            key, value = (part(x).view(batch, length, self.kv_heads, 5).transpose(1, 2) for part in (self.key, self.value))
        if self.repeats:
            many = 4 // self.kv_heads
            key, value = (
                part[:, :, None].expand(batch, self.kv_heads, many, length, 5).reshape(batch, 4, length, 5)
                for part in (key, value)
            )
        if self.manual:
            mixed = (query @ key.transpose(-1, -2) / 5**0.5).softmax(-1) @ value
        else:
            gqa = self.kv_heads != 4 and not self.repeats
            mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=gqa)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, 20))


class Folded(nn.Module):
    """Heads folded into the batch, and a table that is repeated as often as the folded size says."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(12, 20)
        self.place, self.out = nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = (
            part(x).view(batch, length, 4, 5).transpose(1, 2).reshape(-1, length, 5)
            for part in (self.query, self.key, self.value)
        )
        place = self.place(x[:1]).view(length, 4, 5).transpose(0, 1).repeat(query.size(0) // 4, 1, 1)
        mixed = torch.bmm((torch.bmm(query, (key + place).transpose(1, 2)) / 5**0.5).softmax(-1), value)
        return self.out(mixed.view(batch, 4, length, 5).transpose(1, 2).reshape(batch, length, 20))


class Standardized(nn.Module):
    """A convolution whose weight is normalized over what it consumes (Qiao et al. 2019, arXiv:1903.10520)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = functional.batch_norm(self.inner.weight.reshape(1, 6, -1), None, None, training=True)
        x = functional.conv2d(torch.relu(self.stem(x)), flat.reshape_as(self.inner.weight), self.inner.bias)
        return self.head(torch.relu(x))


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(12, 9)
        self.cell = kind(9, 6, layers, bidirectional=both, batch_first=True)
        self.head = nn.Linear(12 if both else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.up(x))[0])


class Bare(nn.Module):
    """Parameters that no module owns, one of them added."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.shift, self.down = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(x @ self.up + self.shift))


class ShuffledGroups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.groups, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, _, height, width = x.shape
        x = x.view(batch, 4, 3, height, width).transpose(1, 2).reshape(batch, 12, height, width)
        return self.head(torch.relu(self.groups(x)))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(14, 2, 1)
        self.first, self.second = nn.Conv2d(6, 4, 1), nn.Conv2d(10, 4, 1)
        self.norm = nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([x, self.first(x)], 1)
        return self.head(torch.cat([x, self.second(torch.relu(self.norm(x)))], 1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        deep = self.up(torch.relu(self.middle(functional.max_pool2d(skip, 2))))
        return self.head(torch.cat([skip, deep], 1))


def _normed(norm: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 2, 1))


def _single(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


_ATTENTION = {"query": (4, 7, "head", True)}

PATTERNS = [
    Pattern(
        "chain",
        lambda: nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)),
        rows,
        {"0": (9, 3, "neuron", True), "2": (5, 3, "neuron", True)},
    ),
    Pattern(
        "sigmoid", lambda: nn.Sequential(nn.Linear(12, 9), nn.Sigmoid(), nn.Linear(9, 3)), rows, {"0": (9, 3, "neuron", False)}
    ),
    Pattern("residual", Residual, image, {"stem": (8, 6, "channel", True), "inner": (6, 3, "channel", True)}),
    Pattern("concat", Concat, image, {"left": (4, 3, "channel", True), "right": (6, 3, "channel", True)}),
    Pattern("chunk", lambda: Gated(chunks=True), rows, {"up": (10, 3, "neuron", True)}),
    Pattern("glu", lambda: Gated(chunks=False), rows, {"up": (10, 3, "neuron", True)}),
    Pattern("split", Split, rows, {"up": (4, 3, "neuron", True), "up#2": (6, 3, "neuron", True)}),
    Pattern(
        "flatten",
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)),
        image,
        {"0": (4, 3, "channel", True)},
    ),
    Pattern("permute", Transposed, image, {"stem": (8, 3, "channel", True), "mix": (6, 3, "channel", True)}),
    Pattern("squeeze and excite", SqueezeExcite, image, {"stem": (8, 6, "channel", True), "squeeze": (4, 3, "neuron", True)}),
    Pattern(
        "depthwise",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 2, 1)),
        image,
        {"0": (8, 5, "channel", True)},
    ),
    Pattern(
        "grouped",
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        image,
        {"0": (3, 5, "channel", True), "0#2": (4, 3, "channel", True), "2": (2, 3, "channel", True)},
    ),
    Pattern(
        "transposed convolution",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        image,
        {"0": (8, 3, "channel", True), "1": (6, 3, "channel", True)},
    ),
    Pattern(
        "one dimension",
        lambda: nn.Sequential(nn.Conv1d(7, 8, 3), nn.BatchNorm1d(8), nn.GELU(), nn.Conv1d(8, 3, 3)),
        rows,
        {"0": (8, 7, "channel", True)},
    ),
    Pattern(
        "three dimensions",
        lambda: nn.Sequential(nn.Conv3d(3, 8, 2), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(8, 2, 1)),
        lambda: (torch.randn(2, 3, 5, 5, 5),),
        {"0": (8, 3, "channel", True)},
    ),
    Pattern("batch norm", _normed(nn.BatchNorm2d(8)), image, {"0": (8, 7, "channel", True)}),
    Pattern("group norm", _normed(nn.GroupNorm(2, 8)), image, {"0": (2, 5, "channel", True), "0#2": (4, 5, "channel", False)}),
    Pattern(
        "layer norm",
        lambda: Embedded(nn.LayerNorm),
        tokens,
        {"table": (12, 7, "channel", False), "up": (9, 3, "neuron", True)},
    ),
    Pattern(
        "root mean square norm",
        lambda: Embedded(nn.RMSNorm),
        tokens,
        {"table": (12, 6, "channel", False), "up": (9, 3, "neuron", True)},
    ),
    Pattern(
        "embedding", lambda: nn.Sequential(nn.Embedding(11, 12), nn.Linear(12, 3)), tokens, {"0": (12, 2, "channel", True)}
    ),
    Pattern("tied", Tied, tokens, {"table": (12, 5, "channel", True)}),
    Pattern("fused attention", lambda: Attention(fused=True), rows, {"qkv": (4, 3, "head", True)}),
    Pattern("fused attention by hand", lambda: Attention(fused=True, manual=True), rows, {"qkv": (4, 3, "head", True)}),
    Pattern("attention", Attention, rows, _ATTENTION),
    Pattern("attention by hand", lambda: Attention(manual=True), rows, _ATTENTION),
    Pattern("grouped queries", lambda: Attention(kv_heads=2), rows, {"query": (2, 7, "head", True)}),
    Pattern("repeated keys", lambda: Attention(kv_heads=2, repeats=True), rows, {"query": (2, 7, "head", True)}),
    Pattern("repeated keys by hand", lambda: Attention(False, True, 2, True), rows, {"query": (2, 7, "head", True)}),
    Pattern("one key", lambda: Attention(kv_heads=1, repeats=True), rows, {"query": (4, 3, "head", False)}),
    Pattern("heads in the batch", Folded, rows, {"query": (4, 9, "head", True)}),
    Pattern(
        "weight standardization",
        Standardized,
        image,
        {"stem": (8, 3, "channel", False), "inner": (6, 3, "channel", True)},
    ),
    Pattern("swiglu", SwiGLU, rows, {"gate": (16, 5, "neuron", True)}),
    Pattern(
        "lstm", lambda: Recurrent(nn.LSTM), rows, {"up": (9, 3, "channel", True), "cell.weight_ih_l0": (6, 6, "channel", True)}
    ),
    Pattern(
        "two lstm layers",
        lambda: Recurrent(nn.LSTM, 2),
        rows,
        {"up": (9, 3, "channel", True), "cell.weight_ih_l0": (6, 12, "channel", True)},
    ),
    Pattern(
        "lstm in both directions",
        lambda: Recurrent(nn.LSTM, 2, True),
        rows,
        {"up": (9, 4, "channel", True), "cell.weight_ih_l0": (6, 23, "channel", True)},
    ),
    Pattern(
        "gru", lambda: Recurrent(nn.GRU), rows, {"up": (9, 3, "channel", True), "cell.weight_ih_l0": (6, 6, "channel", True)}
    ),
    Pattern("bare parameters", Bare, rows, {"up": (8, 3, "neuron", True)}),
    Pattern(
        "pixel shuffle",
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)),
        image,
        {"0": (3, 3, "channel", True)},
    ),
    Pattern(
        "channel shuffle",
        lambda: nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(3), nn.Conv2d(12, 2, 1)),
        image,
        {"0": (3, 3, "channel", True), "0#2": (4, 3, "channel", True)},
    ),
    Pattern(
        "channel shuffle by hand",
        ShuffledGroups,
        image,
        {"stem": (4, 3, "channel", True), "stem#2": (3, 5, "channel", True), "groups": (4, 3, "channel", True)},
    ),
    Pattern(
        "dense block",
        Dense,
        image,
        {"stem": (6, 9, "channel", True), "first": (4, 8, "channel", True), "second": (4, 3, "channel", True)},
    ),
    Pattern(
        "u-net",
        UNet,
        image,
        {"down": (6, 4, "channel", True), "middle": (8, 3, "channel", True), "up": (5, 3, "channel", True)},
    ),
]
