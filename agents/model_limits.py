"""How much a model of transformers, or behind an endpoint, reads and writes for a decision: flags of its players."""

from dataclasses import dataclass

from common.command import require_at_least


@dataclass(frozen=True)
class ModelLimits:
    """How much a model reads and writes for a decision; None: as its checkpoint says."""

    image_tokens: int | None = None
    """The most tokens that a model of transformers may take for an image; by default one tile."""
    history: int | None = None
    """Frames that a model of transformers or api:MODEL sees, each an image; by default as its checkpoint, else 1."""
    max_new_tokens: int | None = None
    """The most tokens of an answer of --decode generate or of api:MODEL; a chain of thought needs hundreds."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "image_tokens", "history", "max_new_tokens")


NO_LIMITS = ModelLimits()
