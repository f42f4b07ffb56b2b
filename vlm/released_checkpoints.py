"""The released checkpoints; known without importing torch."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
RELEASED_POLICY = WEIGHTS / "policy"  # plays, answers for pixels and segments
RELEASED_PVP = WEIGHTS / "reader"  # reads the colors of images that it has never seen
RELEASED_EXPERT = WEIGHTS / "micro-play"  # the expert that is cloned in `experiments.studies.games_nano`
RELEASED_MICRO = WEIGHTS / "micro"  # trained on captions only; `experiments.studies.games_nano` starts from it
RELEASED_CAPTIONER = WEIGHTS / "captioner"  # the semantic encoder that `experiments.studies.pvp_nano` starts from
