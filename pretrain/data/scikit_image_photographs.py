"""The photographs that come with scikit-image: some are evaluated on, the others may be trained on."""

import importlib.metadata
import importlib.util
from pathlib import Path

from common.errors import UserError

EVALUATION_PHOTOGRAPHS = (  # never trained on; the order is that of the evaluation sets
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
TRAINING_PHOTOGRAPHS = (  # motorcycle_right.png shows the same as motorcycle_left.png, and is left out
    "brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png", "moon.png",
)  # fmt: skip


def scikit_image_folder() -> Path:
    """Return the folder of the photographs that come with scikit-image."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise UserError("expected scikit-image, for its photographs: pip install 'pvplay[experiments]'")
    return Path(found.origin).parent / "data"


def scikit_image_copyright() -> str:
    """Return the text of the licence file of scikit-image, which is in Debian's format; empty if it has none."""
    files = importlib.metadata.files("scikit-image") or []
    return "\n".join(file.read_text() for file in files if file.name.startswith("LICENSE"))
