"""Where the checkpoints lie that the repository ships; known without importing torch."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
RELEASED_POLICY = WEIGHTS / "policy"  # plays
RELEASED_PVP = WEIGHTS / "nano-policy"  # plays, Carnival above all, and answers for pixels as well
RELEASED_EXPERT = WEIGHTS / "micro-play"  # an earlier stage of the policy, whom the pupils of `games_nano` copy
RELEASED_CLIP = WEIGHTS / "nano-clip"  # the semantic encoder that `experiments.studies.pvp_nano` starts from
RELEASED_CAPTIONER = WEIGHTS / "micro"  # taught captions alone, which `experiments.studies.games_nano` starts from
RELEASED_SEGMENTER = WEIGHTS / "nano-refer"  # finds what words mean, by its mask head and by points
