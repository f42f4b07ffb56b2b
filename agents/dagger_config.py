"""The configuration of DAgger, and its named configs."""

from dataclasses import dataclass
from typing import Literal

from agents.checkpoint_selection import SELECTION_SEED
from agents.clone_config import CONFIGS as CLONE_CONFIGS
from agents.clone_config import CloneTraining
from agents.registry import default_expert, parse_experts, require_labeller
from common.command import require_at_least
from common.errors import UserError
from vlm.training.config import UNSET_OUT, OptimizerConfig, RunConfig


@dataclass(frozen=True)
class DaggerOptions:
    """The iterations of DAgger."""

    games: tuple[str, ...] = ()
    """The games to improve in; by default all that the checkpoint was trained on."""
    iterations: int = 3
    """How many iterations; more may be added to a finished run."""
    episodes: int = 20
    """Episodes per game that the policy plays in an iteration."""
    expert: str = ""
    """The agent that labels, as --expert of agents.record; by default the expert of each game."""
    experts: tuple[str, ...] = ()
    """Agents that label single games, as in `--experts Pong=sb3:runs/pong.zip`; the games are among --games."""
    label_every: int = 4
    """Steps between labels."""
    rollout_temperature: float = 0.3
    """Sampling temperature of recorded play; higher values visit more mistakes."""
    rollout_engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes the policy's play: torch, or openvino (faster on a CPU)."""
    rollout_num_envs: int = 1
    """Games that the policy plays in parallel."""
    recording_weight: int = 1
    """Times each recording is repeated in the training data."""
    lr_decay: float = 0.7
    """What the learning rates are multiplied by from iteration to iteration."""
    rollout_seed: int = 600
    """The seed of the first iteration's games; each iteration uses the next."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "label_every", "recording_weight", "rollout_num_envs")
        require_at_least(self, 0, "iterations")
        if not 0 < self.lr_decay <= 1:
            raise UserError(f"--lr-decay must be above 0 and at most 1, got {self.lr_decay}")
        for labeller in filter(None, (self.expert, *parse_experts(self.experts, self.games).values())):
            require_labeller(labeller)
        if self.rollout_seed + self.iterations > SELECTION_SEED:
            raise UserError(
                f"--rollout-seed and its iterations must stay below {SELECTION_SEED}, which checkpoint selection uses"
            )

    def expert_of(self, game: str) -> str:
        """Return who labels a game."""
        return parse_experts(self.experts, self.games).get(game) or self.expert or default_expert(game)


@dataclass(frozen=True)
class DaggerConfig(CloneTraining):
    """Improve a policy by DAgger. The other settings are those of each iteration's training (`agents.clone`)."""

    dagger: DaggerOptions = DaggerOptions()


SECTIONS = tuple(CloneTraining.__dataclass_fields__)  # of each iteration's training
_DEFAULT = DaggerConfig(
    RunConfig(UNSET_OUT, steps=1500),
    optimizer=OptimizerConfig(1e-4, connector_learning_rate=3e-4, encoder_learning_rate=3e-4),
).replace(eval_every=0)


def _after_cloning(name: str) -> DaggerConfig:
    return DaggerConfig(**{section: getattr(CLONE_CONFIGS[name], section) for section in SECTIONS})


CONFIGS = {
    "default": _DEFAULT,
    # after `agents.clone --config policy`
    "policy": _after_cloning("policy").replace(
        steps=1500, learning_rate=2.8e-4, connector_learning_rate=4.8e-4, encoder_learning_rate=4.8e-4
    ),
    # the study eight-games
    "eight-games": _after_cloning("eight-games").replace(
        steps=2500, iterations=2, episodes=6, rollout_engine="openvino", rollout_num_envs=6
    ),
}
