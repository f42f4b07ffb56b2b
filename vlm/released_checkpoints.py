"""The released checkpoints; known without importing torch."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
RELEASED_POLICY = WEIGHTS / "policy"  # the best player
RELEASED_PVP = WEIGHTS / "reader"  # reads the colors of images that it has never seen
RELEASED_CAPTIONER = WEIGHTS / "captioner"  # the semantic encoder that the studies start from
RELEASED_SEGMENTER = WEIGHTS / "nano-refer"  # referring segmentation by its mask head
