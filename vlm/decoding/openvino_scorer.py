"""The scores of answers from OpenVINO's compiled graph: the same model for a third of the time, on a CPU.

OpenVINO traces the pass of a `CandidateScorer` once (seconds) and fuses, lays out and schedules it for the processor at
hand. Where that computes bfloat16 natively, so does the graph: scores then differ from float32's in about the second
decimal, and where two answers are as good as equal the choice may differ (`experiments.benchmarks.decision_speed` measures it).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from vlm.decoding.candidate_scoring import CandidateScorer

LARGEST = 3e38


class _Pass(nn.Module):
    """A scorer's pass as a module, from frames on, for tracing."""

    def __init__(self, scorer: CandidateScorer):
        super().__init__()
        self.model, self.scorer = scorer.vlm.model, scorer

    def forward(self, frames: Tensor) -> Tensor:
        vlm = self.scorer.vlm
        return self.scorer.log_probs(vlm.encode_images(vlm.preprocess(frames)))


def native_precision() -> str:
    """Return bf16 where the processor computes it natively, else f32."""
    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


class _Bounded(nn.Module):
    """An activation with an idle upper bound behind it."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(input).clamp(max=LARGEST)


@contextmanager
def _plain_activations(model: nn.Module) -> Iterator[None]:
    """Trace the decoder's gated activations with an idle bound behind them.

    OpenVINO 2026.4 replaces a Llama's feed-forward part by one kernel of its own, which divides by zero in bfloat16
    for widths such as 704 and ends the process. The bound keeps that replacement from being found.
    """
    activations = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if "silu" in type(child).__name__.lower()
    ]
    try:
        for parent, name, child in activations:
            setattr(parent, name, _Bounded(child))
        yield
    finally:
        for parent, name, child in activations:
            setattr(parent, name, child)


class OpenVinoScorer:
    """Scores answers as `scorer` does, for frames of one shape; `precision` is f32 or bf16, None the native one.

    The graph begins at the frames: turning them into pixels outside takes a fifth of a decision's time.
    """

    def __init__(self, scorer: CandidateScorer, frames: np.ndarray, precision: str | None = None):
        self.precision = precision or native_precision()
        example = torch.from_numpy(frames)
        with torch.no_grad(), warnings.catch_warnings(), _plain_activations(scorer.vlm.decoder):
            warnings.simplefilter("ignore")  # tracing warns of every shape it takes for fixed; here all are
            traced = _Pass(scorer).eval()
            traced(example)  # reads the text that the scorer keeps, no part of the graph
            graph = openvino.convert_model(traced, example_input=(example,), input=[(frames.shape, openvino.Type.u8)])
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # else every process takes the first cores, and two share one
        }
        self._request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self.shape = frames.shape

    def log_probs(self, frames: np.ndarray) -> np.ndarray:
        """Return float32[B, C] for frames uint8[B, history, H, W, 3] of the shape that was compiled."""
        assert frames.shape == self.shape
        made = self._request.infer([np.ascontiguousarray(frames)], share_inputs=True)
        return np.array(made[0], dtype=np.float32)
