"""The released checkpoints; known without importing torch."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
RELEASED_POLICY = WEIGHTS / "policy"  # plays, answers for pixels and segments
RELEASED_PVP = WEIGHTS / "reader"  # reads the colors of images that it has never seen
RELEASED_CAPTIONER = WEIGHTS / "captioner"  # the semantic encoder that the studies start from
