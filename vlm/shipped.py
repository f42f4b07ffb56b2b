"""Where the checkpoints lie that the repository ships; known without importing torch."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
SHIPPED = WEIGHTS / "policy"  # plays
SHIPPED_PIXELS = WEIGHTS / "nano-policy"  # plays, Carnival above all, and answers for pixels as well
SHIPPED_TEACHER = WEIGHTS / "micro-play"  # an earlier stage of the policy, whom the pupils of `games_nano` copy
SHIPPED_CLIP = WEIGHTS / "nano-clip"  # the semantic encoder that `experiments.pvp_nano` starts from
SHIPPED_CAPTIONS = WEIGHTS / "micro"  # taught captions alone, which `experiments.games_nano` starts from
SHIPPED_REFER = WEIGHTS / "nano-refer"  # finds what words mean, by its mask head and by points
