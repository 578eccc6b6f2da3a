"""Rounding solvers beside each other: what each leaves of a layer's output error, and its seconds.

    python bench/quantize/solvers.py FOLDER [--bits 4 3 2] [--rows 8192]

Two kinds of layers. Made: weights of a normal distribution, inputs after a ReLU that share an eighth as many causes as there
are columns. Trained: every layer after the stem of the residual CNN of bench/prune/network.py on Fashion-MNIST
(FOLDER/trained-0.safetensors and fashion.npz; batch norms folded), inputs of 512 training images for the Gram matrix and of
512 test images for the loss, and the accuracy on the 10,000 test images with all those layers' weights rounded, activations
float. Every solver gets the same grid, a scale for each row by least squared error (affine at 2 bits). Losses are relative to
rounding to nearest on that grid; of several layers the geometric mean. Writes solvers.json and solvers.md beside this script.
"""

import argparse
import copy
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lighten.gather import device
from lighten.ops.adaround import adaround
from lighten.ops.anneal import anneal
from lighten.ops.gptq import gptq
from lighten.ops.grids import Grid, decode, encode, fit
from lighten.ops.hqq import hqq
from lighten.ops.reconstruct import Window, unfold_columns
from lighten.ops.rounding import output_loss, refit_scales

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "prune"))
from network import ResidualNetwork  # noqa: E402

MADE = ((64, 576), (64, 288), (64, 64), (64, 27))
Solved = tuple[Tensor, Grid]


class Layer(NamedTuple):
    """gram_KK: of the rows that solvers see; test_gram_KK: of those that the loss is taken on."""

    name: str
    w_OK: Tensor
    gram_KK: Tensor
    test_gram_KK: Tensor


def rescaled(layer: Layer, grid: Grid) -> Solved:
    """Annealed, scales refitted, annealed on those: twice."""
    codes_OK = anneal(layer.w_OK, layer.gram_KK, grid)
    for _ in range(2):
        grid = refit_scales(layer.w_OK, layer.gram_KK, codes_OK, grid=grid)
        codes_OK = anneal(layer.w_OK, layer.gram_KK, grid)
    return codes_OK, refit_scales(layer.w_OK, layer.gram_KK, codes_OK, grid=grid)


def minmax(layer: Layer, grid: Grid) -> Solved:
    """Nearest on the grid that covers everything."""
    widest = fit(layer.w_OK, bits=grid.bits, symmetric=not grid.zero.any())
    return encode(layer.w_OK, widest), widest


SOLVERS: dict[str, Callable[[Layer, Grid], Solved]] = {
    "nearest, min-max": minmax,
    "nearest": lambda layer, grid: (encode(layer.w_OK, grid), grid),
    "HQQ (affine, no data)": lambda layer, grid: hqq(layer.w_OK, bits=grid.bits),
    "GPTQ, columns in order": lambda layer, grid: (gptq(layer.w_OK, layer.gram_KK, grid, ordered=False), grid),
    "GPTQ": lambda layer, grid: (gptq(layer.w_OK, layer.gram_KK, grid), grid),
    "AdaRound": lambda layer, grid: (adaround(layer.w_OK, layer.gram_KK, grid), grid),
    "descent from GPTQ": lambda layer, grid: (anneal(layer.w_OK, layer.gram_KK, grid, sweeps=0), grid),
    "anneal": lambda layer, grid: (anneal(layer.w_OK, layer.gram_KK, grid), grid),
    "anneal, refitted scales": rescaled,
}


def main() -> None:
    """Measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with fashion.npz and trained-0.safetensors")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--rows", type=int, default=8192, help="patches a layer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.folder / "fashion.npz") as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    network = folded(load_file(arguments.folder / "trained-0.safetensors"))
    trained = layers_of(network, data, arguments.rows)
    results: dict[str, Any] = {"device": device(), "threads": 1, "seed": 0, "torch": torch.__version__, "rows": arguments.rows}
    results |= {"float": accuracy(network, data), "forward_s": forward_seconds(network, data), "tables": []}
    for bits in arguments.bits:
        for shape in MADE:
            results["tables"].append(compare([made(*shape)], bits, name=f"made, {shape[0]} x {shape[1]}"))
        results["tables"].append(compare(trained, bits, name="trained", network=network, data=data))
    results["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (HERE / "solvers.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (HERE / "solvers.md").write_text(table(results), encoding="utf-8")
    print(table(results))


def made(num_rows: int, num_columns: int) -> Layer:
    """A layer of random weights and correlated inputs; the loss is taken on the rows that solvers see."""
    generator = torch.Generator().manual_seed(0)
    causes = num_columns // 8
    mixed = torch.randn(4 * num_columns, causes, generator=generator) @ torch.randn(causes, num_columns, generator=generator)
    x_NK = torch.relu(mixed / causes**0.5 + 0.3 * torch.randn(4 * num_columns, num_columns, generator=generator)).double()
    gram_KK = x_NK.T @ x_NK / len(x_NK)
    return Layer("", torch.randn(num_rows, num_columns, generator=generator) * num_columns**-0.5, gram_KK, gram_KK)


def folded(state: dict[str, Tensor]) -> nn.Module:
    """The trained network with its batch norms in its convolutions."""
    network = ResidualNetwork()
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
    places = [(network, "stem", "norm"), *((block, f"conv{n}", f"norm{n}") for block in network.stages for n in (1, 2))]
    for place, convolution, norm in places:
        fused = nn.utils.fusion.fuse_conv_bn_eval(getattr(place, convolution), getattr(place, norm))
        setattr(place, convolution, fused)
        setattr(place, norm, nn.Identity())
    return network.requires_grad_(False)


def layers_of(network: nn.Module, data: dict[str, Tensor], rows: int) -> list[Layer]:
    """Every layer but the stem, which has 9 columns and few weights."""
    seen, tested = (grams(network, data[part][:512], rows) for part in ("x_train", "x_test"))
    return [
        Layer(name, module.weight.flatten(1), seen[name], tested[name])
        for name, module in network.named_modules()
        if name in seen and name != "stem"
    ]


def grams(network: nn.Module, x: Tensor, rows: int) -> dict[str, Tensor]:
    """E[x x^T] of every layer's input columns."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_NK = inputs[0]
            if isinstance(module, nn.Conv2d):
                window = Window(module.kernel_size, module.stride, module.padding, module.dilation)
                x_NK = unfold_columns(x_NK, window, count=rows, generator=torch.Generator().manual_seed(0))
            found[name] = x_NK.double().T @ x_NK.double() / len(x_NK)

        return hook

    named = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_pre_hook(keep(name, module)) for name, module in named]
    network(x)
    for handle in handles:
        handle.remove()
    return found


def compare(
    layers: list[Layer], bits: int, *, name: str, network: nn.Module | None = None, data: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """One table: by solver the loss relative to nearest, seconds for all layers, and accuracy where there is a network."""
    rows = []
    for solver, solve in SOLVERS.items():
        ratios, seconds, weights = [], 0.0, {}
        for layer in layers:
            grid = fit(layer.w_OK, bits=bits, symmetric=bits > 2, ranges="mse")
            began = time.process_time()
            codes_OK, used = solve(layer, grid)
            seconds += time.process_time() - began
            weights[layer.name] = decode(codes_OK, used)
            losses = [weights[layer.name], decode(encode(layer.w_OK, grid), grid)]
            found, nearest = (output_loss(layer.w_OK, rounded_OK, layer.test_gram_KK).sum() for rounded_OK in losses)
            ratios.append(float(found / nearest))
        row = {"solver": solver, "loss": math.exp(sum(map(math.log, ratios)) / len(ratios)), "layers": ratios, "cpu_s": seconds}
        if network is not None and data is not None:
            row["accuracy"] = accuracy(with_weights(network, weights), data)
        print(bits, name, row, flush=True)
        rows.append(row)
    return {"name": name, "bits": bits, "rows": rows}


def with_weights(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy with other weights."""
    network = copy.deepcopy(network)
    for name, w_OK in weights.items():
        module = network.get_submodule(name)
        module.weight.copy_(w_OK.reshape(module.weight.shape))
    return network


@torch.no_grad()
def accuracy(network: nn.Module, data: dict[str, Tensor]) -> float:
    """Share of the test images that are told right."""
    pairs = zip(data["x_test"].split(500), data["y_test"].split(500), strict=True)
    return sum(int((network(x).argmax(1) == y).sum()) for x, y in pairs) / len(data["y_test"])


def forward_seconds(network: nn.Module, data: dict[str, Tensor]) -> float:
    """CPU seconds of the plain forward pass of the 512 calibration images."""
    began = time.process_time()
    network(data["x_train"][:512])
    return time.process_time() - began


def table(results: dict[str, Any]) -> str:
    """For people: a line a solver, a column a table."""
    lines = [
        f"{results['device']}; one thread; seed 0; torch {results['torch']}. Float accuracy {results['float']:.4f}; the "
        f"forward pass of the 512 calibration images {results['forward_s']:.2f} s; peak memory {results['peak_mib']} MiB."
    ]
    for bits in sorted({part["bits"] for part in results["tables"]}, reverse=True):
        parts = [part for part in results["tables"] if part["bits"] == bits]
        lines += ["", f"**{bits} bits**: loss relative to nearest, CPU seconds; accuracy of the trained network", ""]
        lines += ["| solver | " + " | ".join(part["name"] for part in parts) + " | accuracy |", "|---" * (len(parts) + 2) + "|"]
        for at, solver in enumerate(SOLVERS):
            rows = [part["rows"][at] for part in parts]
            cells = [f"{row['loss']:.3f}, {row['cpu_s']:.2f} s" for row in rows]
            lines.append(f"| {solver} | " + " | ".join(cells) + f" | {rows[-1]['accuracy']:.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
