"""The configuration of pixel value prediction, and its named configs."""

from dataclasses import dataclass
from pathlib import Path

from common.command import require_at_least
from common.errors import UserError
from pretrain.pvp_questions import NATIVE, parse_grid
from vlm.released_checkpoints import RELEASED_CAPTIONER
from vlm.sinusoidal_init import WAVELENGTHS
from vlm.training.config import UNSET_OUT, ModelConfig, RunConfig, TrainConfig


@dataclass(frozen=True)
class PvpModel(ModelConfig):
    """The model that pixel value prediction starts from."""

    vision_tower: Path | None = None
    """A CLIP of `pretrain.contrastive` whose vision tower the encoder starts from."""
    sinusoidal_init: bool = False
    """Initialize the embeddings of numbers, and the positions of a new CLIP tower, with one sinusoidal encoding."""
    wavelengths: tuple[float, float] = WAVELENGTHS
    """The shortest and the longest wave of that encoding, in units of the numbers."""
    number_scale: float = 0.0
    """Root mean square of the dimensions of a number's embedding that start as its value and its square; 0: none."""
    position_amplitude: float = 1.0
    """Amplitude of the encoding in the positions of a new CLIP tower."""
    patch_init_amplitude: float = 0.0
    """Start a new CLIP tower's patch embedding as cosine waves of each channel, of this amplitude; 0: random."""
    patch_expansion: int = 1
    """Cells along each side of an image token that the decoder reads one by one (`vlm.patch_expansion`)."""
    skip_connection: bool = False
    """Add the encoder's map of the cells' resolution to the expanded cells (Ronneberger et al. 2015, "U-Net")."""
    cell_position_amplitude: float = 0.0
    """Amplitude of the encoding in the positions of expanded cells; 0: cells start without."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "patch_expansion")
        require_at_least(
            self, 0, "number_scale", "position_amplitude", "patch_init_amplitude", "cell_position_amplitude"
        )
        if not 0 < self.wavelengths[0] < self.wavelengths[1]:
            raise UserError(f"--wavelengths: expected the shortest, then the longest, got {self.wavelengths}")
        if self.vision_tower and self.init:
            raise UserError("--vision-tower and --init both name what the encoder starts from; give one")


@dataclass(frozen=True)
class PvpData:
    """Images, questions and the loss of the answers."""

    data: tuple[str, ...] = ()
    """Where images come from: directories of recorded games, and folders of PNG and JPEG files."""
    val_episodes: int = 0
    """The last episodes of every recorded dataset, held out for evaluation."""
    grid: str = NATIVE
    """The grid that coordinates count on: 32 or 64 cells a side, ROWSxCOLUMNS such as 28x20, cells of 8 x 8 pixels as
    8px, or native, the pixels themselves. Cells that lie whole in the encoder's patches are learned best."""
    order: str = "row,column"
    """The order of coordinates: row,column as in the authors' code, or x,y as in the paper's text."""
    size: tuple[int, int] = (210, 160)
    """Rows and columns of the images, reached by integer scaling, then cropping."""
    augmentation: float = 0.0
    """Probability of changed colors, and of changed geometry, in an image."""
    synthetic: float = 0.0
    """Share of synthetic images."""
    curriculum_fraction: float = 0.0
    """Share of the steps over which augmentation and the detail level of synthetic images rise from zero."""
    shuffle_targets: bool = False
    """Answer every image with another's colors: control: the answer format alone can be learned."""
    images: int = 8
    """Images of a batch."""
    questions: int = 48
    """Questions about each image."""
    label_std: float = 0.0
    """Standard deviation of Gaussian targets for numbers, in color levels; 0: one-hot labels as in Gou et al. 2024."""
    attention_supervision_weight: float = 0.0
    """Weight of the attention supervision loss (`vlm.training.attention_supervision`); 0 is the paper's loss."""
    heads_by_number: bool = False
    """Supervise heads of its own for the answer's second number, and others for the third."""
    dense_loss_weight: float = 0.0
    """Initial weight of an auxiliary loss: a linear layer that reads the colors of each image token's cells off the
    token; it falls to 0 over the first `dense_loss_fraction` of the steps."""
    dense_loss_fraction: float = 0.3
    """Share of the steps that have the auxiliary loss."""
    caption_weight: float = 0.0
    """Share of the steps that train captions of the recorded games instead, which keeps semantic features;
    a new model has the words of captions in its vocabulary."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "images", "questions")
        require_at_least(self, 0, "attention_supervision_weight", "dense_loss_weight")
        for name in ("augmentation", "synthetic", "curriculum_fraction", "caption_weight", "dense_loss_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be from 0 to 1, got {getattr(self, name)}")
        if self.caption_weight == 1:
            raise UserError("--caption-weight must be less than 1, so that pixel values are trained; got 1.0")
        if self.shuffle_targets and self.images < 2:
            raise UserError("--shuffle-targets needs --images of at least 2")
        parse_grid(self.grid)


@dataclass(frozen=True)
class PvpValidation:
    """Images that training does not see, and when it is tried on them."""

    val_data: tuple[str, ...] = ()
    """Where validation images come from: recorded games, folders of pictures, or the word synthetic."""
    val_images: int = 8
    """Images of each of these places."""
    eval_every: int = 0
    """Steps between evaluations on them, which print the gates (`pretrain.pvp_gates`); 0: none."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "eval_every")
        require_at_least(self, 1, "val_images")


@dataclass(frozen=True)
class PvpConfig(TrainConfig):
    """Train pixel value prediction."""

    model: PvpModel = PvpModel()
    data: PvpData = PvpData()
    validation: PvpValidation = PvpValidation()


_DEFAULT = PvpConfig(RunConfig(UNSET_OUT))
_READING = _DEFAULT.replace(
    preset="nano-clip",
    sinusoidal_init=True,
    wavelengths=(4.0, 256.0),
    number_scale=0.2,
    position_amplitude=0.5,
    patch_init_amplitude=2.0,
    patch_expansion=2,
    cell_position_amplitude=0.15,
    grid="24",
    size=(216, 216),
    synthetic=1.0,
    images=8,
    questions=64,
    label_std=4.0,
    attention_supervision_weight=1.0,
    dense_loss_weight=10.0,
    dense_loss_fraction=1.0,
    heads_by_number=True,
    steps=3000,
    encoder_learning_rate=3e-4,
    trainer=("warmup_steps=40", "save_steps=250"),
)
_PLAY_CLIP = _READING.replace(
    preset="play-clip",
    grid="9px",
    size=(210, 160),
    synthetic=0.5,
    augmentation=0.5,
    questions=48,
    steps=1000,
)
_NANO_FINE = _PLAY_CLIP.replace(
    preset="nano-fine", patch_init_amplitude=0.0, patch_expansion=4, skip_connection=True, grid="8px"
)
CONFIGS = {
    "default": _DEFAULT,
    # beside play: the settings of `agents.clone --pvp-weight`
    "with-play": _DEFAULT.replace(grid="32", images=8, questions=16, synthetic=0.2, augmentation=0.25, label_std=6.0),
    # a first policy's pixels, before play
    "policy": _DEFAULT.replace(preset="micro", sinusoidal_init=True, grid="32", steps=400),
    # the study pvp-nano, whose models games-nano and refer-nano start from; it trains from the released captioner
    "pvp-nano": _NANO_FINE.replace(
        init=RELEASED_CAPTIONER,
        val_episodes=2,
        augmentation=1.0,
        questions=32,
        steps=1200,
        trainer=("warmup_steps=40", "save_steps=300"),
    ),
    # reads images never seen: every lever of the study pvp-levers, from synthetic images alone
    "reading": _READING,
    # the released reader: native frames, photographs and synthetic images, in a model that can learn to play as well
    "play-clip": _PLAY_CLIP,
    # convolutions that play as well: tokens of 32 x 32 pixels for play, cells of 8 x 8 for pixels; beside play with
    # fewer questions, since every step has some
    "nano-fine": _NANO_FINE,
    "nano-fine-with-play": _NANO_FINE.replace(images=4, questions=32),
}
