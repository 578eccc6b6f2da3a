"""Bits per weight and signal-to-noise of every representation on one normal matrix, and the speed of packing.

Run: OMP_NUM_THREADS=1 python bench/quantize/grids.py        Prints the two tables of docs/methods/grids.md.
"""

import time

import torch
from torch import Tensor

from lighten.ops import codebooks, floats, grids
from lighten.ops.packing import pack, unpack

HALF = torch.float16


def integer(w_OK: Tensor, **knobs: object) -> tuple[int, Tensor]:
    grid = grids.with_scales(grids.ternary(w_OK, group=64) if knobs == {} else grids.fit(w_OK, **knobs), HALF)
    return grid.stored_bytes(w_OK.numel()), grids.decode(grids.encode(w_OK, grid), grid)


def floating(w_OK: Tensor, **knobs: object) -> tuple[int, Tensor]:
    blocks = floats.fit(w_OK, **knobs)
    blocks = blocks if knobs.get("scale") == "mx" else floats.with_scales(blocks, HALF)
    return blocks.stored_bytes(w_OK.numel()), floats.decode(floats.encode(w_OK, blocks), blocks)


def shared(w_OK: Tensor, bits: int) -> tuple[int, Tensor]:
    book = codebooks.fit(w_OK, bits=bits, rows=1)
    book = codebooks.Codebook(book.values_PV.to(HALF), book.rows, book.columns)
    return book.stored_bytes(w_OK.numel()), codebooks.decode(codebooks.encode(w_OK, book), book)


def representations(w_OK: Tensor) -> dict[str, tuple[int, Tensor]]:
    rows = {"binary, group 64": integer(w_OK, bits=1, group=64), "ternary, group 64": integer(w_OK)}
    for bits in (2, 3, 4):
        rows[f"{bits} bits, group 64, minmax"] = integer(w_OK, bits=bits, group=64)
        rows[f"{bits} bits, group 64, mse"] = integer(w_OK, bits=bits, group=64, ranges="mse")
        rows[f"{bits} bits, group 64, affine, mse"] = integer(w_OK, bits=bits, group=64, ranges="mse", symmetric=False)
        rows[f"codebook of {bits} bits, a row"] = shared(w_OK, bits)
    rows["8 bits, a row, mse"] = integer(w_OK, bits=8, ranges="mse")
    for name in ("nf4", "e2m1"):
        rows[f"{name}, block 64"] = floating(w_OK, format=name, block=64)
    for name in ("e2m1", "e2m3", "e3m2", "e4m3", "int8"):
        rows[f"MX {name}, block 32"] = floating(w_OK, format=name, block=32, scale="mx")
    for name in ("e4m3", "e5m2"):
        rows[f"{name}, a row"] = floating(w_OK, format=name)
    return rows


def packing_speed(bits: int, num_codes: int = 2**24) -> tuple[float, float]:
    """Billions of codes a second, packing and unpacking: the best of five."""
    codes = torch.randint(0, 2**bits, (num_codes,), dtype=torch.uint8)
    packed = pack(codes, bits)
    jobs = (lambda: pack(codes, bits), lambda: unpack(packed, bits, num_codes=num_codes))
    pack_s, unpack_s = (min(_seconds(job) for _ in range(5)) for job in jobs)
    return num_codes / pack_s / 1e9, num_codes / unpack_s / 1e9


def _seconds(job) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    w_OK = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    print("| representation | bits per weight | signal-to-noise, dB |\n|---|---|---|")
    for name, (stored_bytes, rounded_OK) in representations(w_OK).items():
        ratio = w_OK.square().sum() / (rounded_OK - w_OK).square().sum()
        print(f"| {name} | {8 * stored_bytes / w_OK.numel():.2f} | {10 * torch.log10(ratio):.1f} |")
    print("\n| bits | pack, 10^9 codes/s | unpack |\n|---|---|---|")
    for bits in range(1, 9):
        print("| {} | {:.2f} | {:.2f} |".format(bits, *packing_speed(bits)))
