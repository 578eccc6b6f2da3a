"""EfficientNet-Lite0 is built as its file says, and int8 changes few of its answers."""

import gzip

import numpy as np
import pytest
import torch

import lighten
from examples import efficientnet_lite0


@pytest.fixture(scope="module")
def model() -> lighten.Model:
    try:
        return efficientnet_lite0.build()
    except lighten.InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def data() -> lighten.Data:
    pytest.importorskip("PIL")
    try:
        return efficientnet_lite0.data()
    except lighten.InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("kernel", "before", "after"), [(3, 0, 1), (5, 1, 2)])
def test_padding_at_stride_2_is_tensorflows(kernel, before, after) -> None:
    """Same: (ceil(n / s) - 1) s + k - n in all, the smaller half before; n = 8 gives k - 2."""
    layer = efficientnet_lite0.Convolution((1, 1), kernel, stride=2)
    assert layer.pad.padding == (before, after, before, after)
    assert layer.conv(layer.pad(torch.zeros(1, 1, 8, 8))).shape == (1, 1, 4, 4)


def test_the_network_has_the_published_number_of_parameters() -> None:
    network = efficientnet_lite0.EfficientNetLite0()
    assert sum(value.numel() for value in network.parameters()) == 4_652_008


def test_names_are_those_of_the_carriers_file() -> None:
    assert efficientnet_lite0.carrier_name("stem.conv.weight") == "_conv_stem.weight"
    assert efficientnet_lite0.carrier_name("blocks.3.expand.norm.bias") == "_blocks.3._bn0.bias"


def test_idx_files_are_read_in_their_own_shape(tmp_path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes([0, 0, 8, 3]) + np.array(images.shape, dtype=">u4").tobytes()
    (tmp_path / "images.gz").write_bytes(gzip.compress(header + images.tobytes()))
    np.testing.assert_array_equal(efficientnet_lite0.read_idx(tmp_path / "images.gz"), images)


@pytest.mark.slow
def test_images_are_enlarged_a_batch_at_a_time(data) -> None:
    batch = next(iter(data.test.batches(4)))
    assert batch.inputs[0].shape == (4, 3, 224, 224)
    assert batch.inputs[0].min() >= -127 / 128
    assert batch.inputs[0].max() <= 1
    assert (len(data.test), len(data.calibration), batch.target) == (500, 128, None)


@pytest.mark.slow
def test_int8_keeps_the_original_answers(model, data, tmp_path) -> None:
    budget, target = lighten.Budget(max_drop=0.05), lighten.Target(threads=1)
    result = lighten.compress(model, data, budget=budget, target=target)
    result.save(tmp_path / "out")
    assert result.verdict == "met"
    assert result.report["drop"] <= 0.05
    assert result.report["compressed"]["size_bytes"] < 0.3 * result.report["baseline"]["size_bytes"]
