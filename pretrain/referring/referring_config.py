"""The configuration of referring segmentation, and its named configs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.command import require_at_least
from common.errors import UserError
from pretrain.referring.refer_files import find_dataset
from vlm.segmentation.mask_head import HIDDEN_CHANNELS
from vlm.training.config import UNSET_OUT, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

GAMES = "games"
PHOTOGRAPH_SIZE = (224, 224)


@dataclass(frozen=True)
class ReferringModel(ModelConfig):
    """The model that a training starts from, its mask head included where it has one."""

    hidden_channels: int = HIDDEN_CHANNELS
    """The width of a new mask head's feature maps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "hidden_channels")


@dataclass(frozen=True)
class ReferringData:
    """Frames, expressions and how masks are predicted."""

    data: tuple[Path, ...] = ()
    """Directories of recorded games and of cut-outs; with another --dataset, the folder of REFER's layout."""
    dataset: str = GAMES
    """games, also for cut-outs; refcoco, refcoco+ or refcocog."""
    split: str = "train"
    """The split to train on."""
    size: tuple[int, int] | None = None
    """Rows and columns of the images; by default frames keep theirs and photographs are resized to 224 x 224."""
    mask: Literal["head", "points", "both"] = "head"
    """How masks are predicted: by a head on the encoder's feature maps, as 0 and 1 in text at points of a grid, or by
    both, trained as a mixture."""
    grid: int = 32
    """With --mask points: cells along each side."""
    points: int = 16
    """With --mask points: points asked about for each expression of a batch."""
    attention_supervision_weight: float = 0.0
    """With --mask points: weight of the attention supervision loss, without which a small decoder does not localize."""
    val_episodes: int = 1
    """The last games of every dataset, held out for testing, and as many before them for validation."""
    images: int = 8
    """Frames of a batch."""
    expressions: int = 6
    """Expressions about each frame."""
    no_target_fraction: float = 0.1
    """Share of expressions that name no object of their frame."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "grid", "points", "val_episodes", "images", "expressions")
        require_at_least(self, 0, "attention_supervision_weight")
        if self.dataset == GAMES and self.size:
            raise UserError("--size is for photographs: frames of games keep their size")
        if self.dataset != GAMES:
            object.__setattr__(self, "dataset", find_dataset(self.dataset))
            object.__setattr__(self, "size", self.size or PHOTOGRAPH_SIZE)
            if len(self.data) > 1:
                raise UserError(f"expected one folder of REFER's layout for {self.dataset}, got {len(self.data)}")


@dataclass(frozen=True)
class ReferringConfig(TrainConfig):
    """Train referring segmentation."""

    model: ReferringModel = ReferringModel()
    data: ReferringData = ReferringData()


_DEFAULT = ReferringConfig(
    RunConfig(UNSET_OUT),
    optimizer=OptimizerConfig(3e-4, encoder_learning_rate=1e-3, auxiliary_learning_rate=1e-3),
)
_STUDY = _DEFAULT.replace(images=6)
CONFIGS = {
    "default": _DEFAULT,
    # beside play: few frames, since every step may have some
    "with-play": _DEFAULT.replace(images=3, expressions=8, val_episodes=2),
    "things-with-play": _DEFAULT.replace(images=6, expressions=8, val_episodes=2),  # named things are many
    "refer-nano-head": _STUDY.replace(steps=1500, expressions=12, trainer=("warmup_steps=50", "save_steps=375")),
    "refer-nano-points": _STUDY.replace(
        mask="points",
        grid=64,
        points=12,
        attention_supervision_weight=1.0,
        steps=300,
        expressions=4,
        learning_rate=1e-3,
        encoder_learning_rate=3e-4,
        trainer=("warmup_steps=40", "save_steps=75"),
    ),
}
