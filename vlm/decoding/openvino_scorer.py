"""A `CandidateScorer` compiled by OpenVINO: the same model in a third of the time, on a CPU.

OpenVINO traces the forward pass once (seconds) and optimizes it for the processor. Where that computes bfloat16
natively, so does the graph: log-probabilities then differ from float32's in about the second decimal
(`experiments.benchmarks.decision_speed`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import openvino
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common.errors import UserError
from vlm.decoding.candidate_scoring import CandidateScorer

CLAMP_MAX = 3e38  # above every activation


class _FramesToLogProbs(nn.Module):
    """A scorer's forward pass from frames on, for tracing."""

    def __init__(self, scorer: CandidateScorer):
        super().__init__()
        self.model, self.scorer = scorer.vlm.model, scorer

    def forward(self, frames: Tensor) -> Tensor:
        vlm = self.scorer.vlm
        return self.scorer.log_probs(vlm.encode_images(vlm.preprocess(frames)))


def native_precision() -> str:
    """Return bf16 where the processor computes it natively, else f32."""
    return "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


@contextmanager
def _clamped_activations(model: nn.Module) -> Iterator[None]:
    """Clamp the decoder's gated activations within the context.

    OpenVINO 2026.4 fuses a Llama's feed-forward layer into one kernel, which crashes by dividing by zero in bfloat16
    for widths such as 704. The clamp keeps it from matching the pattern.
    """
    activations = [module for module in model.modules() if "silu" in type(module).__name__.lower()]
    hooks = [a.register_forward_hook(lambda *call: call[-1].clamp(max=CLAMP_MAX)) for a in activations]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class OpenVinoScorer:
    """Scores candidates as `scorer` does, which caches its prompt, for frames of one shape.

    The graph starts at the frames, since preprocessing outside of it would take a fifth of the time. `frames` are an
    example of the shape to compile for; `precision` is f32, bf16 or, for None, the processor's native one.
    """

    def __init__(self, scorer: CandidateScorer, frames: UInt8[np.ndarray, "B T H W 3"], precision: str | None = None):
        if not scorer.vlm.traceable:  # the first frame would become a constant of the graph
            name = type(scorer.vlm.model).__name__
            raise UserError(f"{name} brings its own preprocessing and computes in torch; expected --engine torch")
        self.precision = precision or native_precision()
        example, module = torch.from_numpy(frames), _FramesToLogProbs(scorer).eval()
        with torch.no_grad(), warnings.catch_warnings(), _clamped_activations(scorer.vlm.decoder):
            warnings.simplefilter("ignore")  # tracing warns of every shape that it fixes; here all are fixed
            module(example)  # fills the scorer's text cache, which is then a constant of the graph
            graph = openvino.convert_model(module, example_input=(example,), input=[(frames.shape, openvino.Type.u8)])
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # else every process takes the first cores, and two share one
        }
        self._request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self.shape = frames.shape

    def log_probs(self, frames: UInt8[np.ndarray, "B T H W 3"]) -> Float[np.ndarray, "B C"]:
        """Return the log-probability of every candidate for frames of the compiled shape."""
        assert frames.shape == self.shape
        outputs = self._request.infer([np.ascontiguousarray(frames)], share_inputs=True)
        return np.array(outputs[0], dtype=np.float32)
