"""Where the checkpoint lies that the repository ships; known without importing torch."""

from pathlib import Path

SHIPPED = Path(__file__).resolve().parent / "weights" / "nano"
