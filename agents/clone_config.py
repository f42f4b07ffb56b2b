"""The configuration of behavior cloning, and its named configs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.checkpoint_selection import SelectionConfig
from agents.demonstrations import DemonstrationsConfig
from common.command import require_at_least
from common.errors import UserError
from envs.column_map import HubOptions
from envs.games import find_game
from envs.hub_sets import local_datasets
from vlm.training.config import UNSET_OUT, OptimizerConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class CloneData:
    """Training data and losses."""

    data: tuple[Path, ...] = ()
    """Dataset directories of `agents.record`, of one game or of several; datasets of the hub as hf://owner/set:split."""
    batch_size: int = 64
    """Examples of a batch, divided among the games."""
    game_weights: tuple[str, ...] = ()
    """Sampling weights of games in a batch, 1 by default, as in `--game-weights MsPacman=3`."""
    targets: Literal["soft", "hard"] = "soft"
    """soft: softmax of the expert's action values; hard: its best action (or the player's, without labels)."""
    target_temperature: float = 0.4
    """Temperature of soft targets, in units of the dataset's mean of best value minus mean value."""
    argmax_weight: float = 0.1
    """Weight of a one-hot target that is mixed into the soft one, which breaks ties."""
    distill_from: Path | None = None
    """A policy whose probabilities are the targets, instead of labels and actions (policy distillation, Rusu et al.
    2015): it passes its play on to a model that learns something else as well."""
    horizontal_flip: tuple[str, ...] = ()
    """Games that are mirrored left to right half of the time: both sides of the screen must obey the same rules."""
    shift: int = 0
    """Pixels by which frames are moved at random, up or down and left or right (DrQ, Yarats et al. 2021): rules are
    learned where the picture is moved too."""
    swapped_colors: float = 0.0
    """Share of the examples whose red, green and blue are put in a random order: rules are learned in other colors."""
    aux_loss_weight: float | None = None
    """Weight of the auxiliary action head's loss; None is 1 for a new model and 0 with --init."""
    aux_warmup_fraction: float = 0.0
    """Fraction of the training that first trains the auxiliary head alone; not for a policy that already plays."""
    pvp_weight: float = 0.0
    """Share of the steps that train pixel value prediction instead, which preserves fine spatial detail."""
    pvp_config: str = "with-play"
    """The named config (`pretrain/pvp_config.py`) whose data settings the PVP steps use."""
    pvp_data: tuple[str, ...] = ()
    """Where their images come from besides the demonstrations: recorded games and folders of pictures."""
    mask_weight: float = 0.0
    """Share of the steps that train referring segmentation by a mask head instead, so that one model does all three."""
    mask_config: str = "with-play"
    """The named config (`pretrain/referring/referring_config.py`) whose data settings those steps use."""
    mask_data: tuple[Path, ...] = ()
    """Their recorded games, by default the demonstrations."""
    joint: bool = False
    """Every step trains all of these tasks, and their shares are those of the loss: what a model can, it keeps."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size")
        require_at_least(self, 0, "aux_loss_weight", "shift")
        for name in ("aux_warmup_fraction", "pvp_weight", "mask_weight", "swapped_colors"):
            if not 0 <= getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} must be at least 0 and less than 1, got {getattr(self, name)}")
        if self.pvp_weight + self.mask_weight >= 1:
            shares = f"{self.pvp_weight} and {self.mask_weight}"
            raise UserError(f"--pvp-weight and --mask-weight must leave a share to play, got {shares}")
        self.weights_by_game()

    def weights_by_game(self) -> dict[str, float]:
        """Return the weight of each game that `game_weights` names."""
        found = {}
        for given in self.game_weights:
            name, _, weight = given.partition("=")
            if not weight.replace(".", "", 1).isdecimal() or float(weight) <= 0:
                raise UserError(f"--game-weights: expected GAME=NUMBER above 0, as in MsPacman=3, got {given!r}")
            found[find_game(name).name] = float(weight)
        return found


@dataclass(frozen=True)
class CloneTraining(TrainConfig):
    """Train a text policy on recorded games; `agents.dagger` trains so in each iteration."""

    data: CloneData = CloneData()
    hub: HubOptions = HubOptions()
    selection: SelectionConfig = SelectionConfig()

    def directories(self) -> tuple[Path, ...]:
        """Return the directory of each dataset of `data`, those of the hub among them."""
        return local_datasets(self.data.data, self.hub)


@dataclass(frozen=True)
class CloneConfig(CloneTraining):
    """Clone experts' play into one text policy."""

    demonstrations: DemonstrationsConfig = DemonstrationsConfig()


_DEFAULT = CloneConfig(
    RunConfig(UNSET_OUT, steps=4000),
    optimizer=OptimizerConfig(3e-4, connector_learning_rate=1e-3, encoder_learning_rate=1e-3),
)
_TWO_GAMES = _DEFAULT.replace(
    batch_size=64,
    aux_loss_weight=1.0,
    eval_every=0,
    learning_rate=7e-4,
    encoder_learning_rate=1.2e-3,
    connector_learning_rate=1.2e-3,
)
_POLICY = _TWO_GAMES.replace(game_weights=("MsPacman=3",), horizontal_flip=("MsPacman",))
CONFIGS = {
    "default": _DEFAULT,
    # a first policy from demonstrations, after `pretrain.pvp --config policy`
    "policy": _POLICY.replace(steps=1600, pvp_weight=0.1, trainer=("warmup_steps=50", "save_steps=200")),
    # the released policy's last training, on games of its own labelled by the experts
    "policy-last": _POLICY.replace(
        steps=2800,
        batch_size=128,
        target_temperature=0.3,
        pvp_weight=0.05,
        seed=13,
        learning_rate=6e-4,
        encoder_learning_rate=9e-4,
        connector_learning_rate=9e-4,
        trainer=("warmup_steps=30", "save_steps=100"),
    ),
    # one model that plays, reads and segments, after `pretrain.pvp --config nano-fine`; the losses are weighed so that
    # the gradient of none drowns the others'
    "all-tasks": _POLICY.replace(
        game_weights=("MsPacman=2",),
        steps=1800,
        joint=True,
        pvp_weight=0.1,
        pvp_config="nano-fine-with-play",
        mask_weight=0.03,
        encoder_learning_rate=1e-3,
        connector_learning_rate=1e-3,
        trainer=("warmup_steps=60", "save_steps=200"),
    ),
    # the study eight-games, from the released policy
    "eight-games": _TWO_GAMES.replace(
        steps=3000,
        batch_size=128,
        aux_loss_weight=None,
        learning_rate=5e-4,
        encoder_learning_rate=5e-4,
        connector_learning_rate=5e-4,
        trainer=("warmup_steps=60", "save_steps=200"),
    ),
    # the study games-nano
    "games-nano": _TWO_GAMES.replace(
        steps=500, game_weights=("MsPacman=2",), trainer=("warmup_steps=40", "save_steps=125")
    ),
}
