"""How a checkpoint was trained on pixel values, which is how it is to be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from pretrain.pvp_config import CONFIGS, PvpData
from vlm.checkpoint import read_training
from vlm.prompts import ORDERS


@dataclass(frozen=True)
class PixelTraining:
    """Grid, order of coordinates, and rows and columns of the images (None: as they are)."""

    grid: str
    order: str = ORDERS[0]
    size: tuple[int, int] | None = None

    @classmethod
    def find(cls, training: dict[str, Any]) -> "PixelTraining | None":
        """Return it from a `training.json`: that of the last training with pixel values, None without one.

        A training that mixes pixel values among others names a config of `pretrain.pvp_config`, older ones the grid;
        earlier trainings are in `started_from`.
        """
        while training:
            arguments = training.get("arguments", {})
            weight, config = arguments.get("pvp_weight"), CONFIGS.get(arguments.get("pvp_config"))
            data, grid = config.data if config and weight else None, arguments.get("grid")
            if not isinstance(grid, str):  # a whole number is the grid of a mask's points
                grid = data.grid if data else None
            if grid and weight != 0:
                data = data or PvpData()
                size = arguments.get("size", data.size)
                order = arguments.get("order") or data.order
                return cls(grid, order, (int(size[0]), int(size[1])) if size else None)
            training = training.get("started_from") or {}
        return None

    @classmethod
    def of_checkpoint(cls, directory: Path) -> "PixelTraining":
        """Return that of a checkpoint; `UserError` if it was not trained on pixel values."""
        found = cls.find(read_training(directory))
        if found is None:
            raise UserError(f"expected a checkpoint trained on pixel values (`pretrain.pvp`), got {directory}")
        return found
