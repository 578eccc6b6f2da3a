"""The voice activity detector is the one its authors publish, and its compressed form is as good."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import lighten
from examples import silero_vad
from examples.carriers import SILERO_VAD, fetch
from examples.silero_vad import CONTEXT, FRAME, NUM_FRAMES
from lighten.evaluate.metrics import score

# the published ONNX file's names -> names here
PUBLISHED = {
    "stft.forward_basis_buffer": "spectrum.weight",
    **{f"encoder.{n}.reparam_conv.{part}": f"encoder.{2 * n}.{part}" for n in range(4) for part in ("weight", "bias")},
    **{f"decoder.rnn.{part}": f"memory.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "decoder.decoder.2.weight": "head.weight",
    "decoder.decoder.2.bias": "head.bias",
}


@pytest.fixture(scope="module")
def model() -> lighten.Model:
    try:
        return silero_vad.build()
    except lighten.InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def data() -> lighten.Data:
    pytest.importorskip("scipy")
    try:
        return silero_vad.data()
    except lighten.InputError as error:
        pytest.skip(str(error))


def test_a_clip_is_half_speech_and_labels_lie_on_it() -> None:
    tone = np.sin(np.arange(4_000) / 5).astype(np.float32) / 2
    samples, labels = silero_vad.make_clip(itertools.repeat(tone), np.random.default_rng(0))
    assert samples.shape == (NUM_FRAMES * FRAME,)
    loudness_T = np.sqrt((samples.reshape(NUM_FRAMES, FRAME) ** 2).mean(axis=1))
    # noise alone has 0.003; a frame that touches a tone by fewer than 3 samples would stay below 0.02 as well
    assert loudness_T[labels == 0].max() < 0.02
    assert np.mean(loudness_T[labels == 1] > 0.02) > 0.9
    # five tones of 4,000 samples: 20,000 of 32,768, and each may touch two frames in part
    assert 20_000 / FRAME - 1 <= labels.sum() <= 20_000 / FRAME + 10


def test_the_energetic_part_leaves_silence_out() -> None:
    recording = np.zeros(3_000, dtype=np.float32)
    recording[1_000:2_000] = 0.5
    first, last = silero_vad.energetic(recording)
    assert 920 <= first <= 1_000  # loudness is a mean over 160 samples, 80 to each side
    assert 1_999 <= last <= 2_080


@pytest.mark.slow
def test_the_network_equals_the_published_one_frame_by_frame(data) -> None:
    """With the published file's weights: those of the safetensors file are of another training."""
    path = _published()
    state = {
        PUBLISHED[part.name.removeprefix("model.")]: torch.from_numpy(numpy_helper.to_array(part).copy())
        for part in onnx.load(path).graph.initializer
    }
    state["head.weight"] = state["head.weight"].squeeze(2)
    network = silero_vad.SileroVAD().eval()
    network.load_state_dict(state)
    (audio_BL,) = next(iter(data.test.batches(4))).inputs
    with torch.no_grad():
        found_BT = network(audio_BL).numpy()
    # float32 in another order of summation gives 1e-6; without the context it is off by 0.04, without the state by 0.96
    assert np.abs(found_BT - _frame_by_frame(path, audio_BL.numpy())).max() < 1e-4


@pytest.mark.slow
def test_int8_keeps_the_frame_auc(model, data, tmp_path) -> None:
    budget, target = lighten.Budget(max_drop=0.01), lighten.Target(threads=1)
    result = lighten.compress(model, data, budget=budget, target=target)
    result.save(tmp_path / "out")
    assert result.report["verdict"] == "met"
    assert result.report["baseline"]["score"] > 0.9
    assert result.report["drop"] <= 0.01
    assert result.report["compressed"]["size_bytes"] < 0.6 * result.report["baseline"]["size_bytes"]


@pytest.mark.slow
def test_the_detector_tells_speech_from_noise(model, data) -> None:
    with torch.no_grad():
        outputs = [model.module(*batch.inputs).numpy() for batch in data.test.batches(50)]
    assert score("auc", np.concatenate(outputs), data.test.targets.numpy()) > 0.9
    assert (len(data.test), len(data.calibration)) == (150, 64)


def _published():
    try:
        return fetch(SILERO_VAD) / "silero_vad/data/silero_vad_16k_op15.onnx"
    except lighten.InputError as error:
        pytest.skip(str(error))


def _frame_by_frame(path, audio_BL):
    """A call a frame, its state and the last 64 samples handed on, as the package's own code does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    num_clips = len(audio_BL)
    context, state = np.zeros((num_clips, CONTEXT), np.float32), np.zeros((2, num_clips, 128), np.float32)
    outputs = []
    for frame in np.split(audio_BL, NUM_FRAMES, axis=1):
        sound = np.concatenate([context, frame], axis=1)
        output, state = session.run(None, {"input": sound, "state": state, "sr": np.array(16_000)})
        context = sound[:, -CONTEXT:]
        outputs.append(output)
    return np.concatenate(outputs, axis=1)
