"""Where the checkpoints lie that the repository ships; known without importing torch."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
SHIPPED = WEIGHTS / "policy"  # plays
SHIPPED_PLAY = WEIGHTS / "micro-play"  # plays as well; whom the pupils of `experiments.games_nano` copy
SHIPPED_CLIP = WEIGHTS / "nano-clip"  # the semantic encoder that `experiments.pvp_nano` starts from
SHIPPED_CAPTIONS = WEIGHTS / "micro"  # taught captions alone, which `experiments.games_nano` starts from
SHIPPED_REFER = WEIGHTS / "nano-refer"  # finds what words mean, by its mask head and by points
