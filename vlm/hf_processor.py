"""Processors of pretrained vision-language models, for images alone.

A processor that takes videos too needs torchvision to be made by transformers. Frames are images, so that without
torchvision it is made without its part for videos, whose settings pass unchanged into checkpoints.
"""

import importlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from vlm.checkpoint_files import read_object

VIDEO, VIDEO_SETTINGS = "video_processor", "video_preprocessor_config.json"
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
EXTRA = "pip install -e '.[vlm]'"  # brings what the classes need
MISSING = re.compile(r"requires the (\w+) library|[Pp]ackage `(\w+)`|No module named '(\w+)|`pip install (\w+)`")


def load_processor(directory: Path) -> Any:
    """Return the processor of a directory of transformers' files; raises as transformers does."""
    kind = None if is_torchvision_available() else _processor_class(directory)
    if kind is None or VIDEO not in kind.get_attributes():
        return AutoProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    loaders: dict[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    made = [
        loaders[name].from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        for name in kind.get_attributes()
        if name in loaders
    ]
    settings, _ = kind.get_processor_dict(directory, local_files_only=True)
    processor = without_videos(kind).from_args_and_dict([*made, None], settings)
    processor.video_settings = _video_settings(directory)
    return processor


def missing_package(error: ImportError) -> str:
    """Return the package that a class needs, and the command that installs it."""
    text = " ".join(str(error).split())
    found = MISSING.search(text)
    name = next(filter(None, found.groups())).lower() if found else error.name or text or "a package that is missing"
    return f"it needs the package {name}, which is not installed; {EXTRA} installs it"


@cache
def without_videos(kind: Any) -> Any:
    """Return a processor class without its part for videos."""

    class ImagesOnly(kind):
        video_settings: dict[str, Any]

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != VIDEO]

        def save_pretrained(self, directory: Any, *rest: Any, **options: Any) -> Any:
            written = super().save_pretrained(directory, *rest, **options)
            if self.video_settings:
                (Path(directory) / VIDEO_SETTINGS).write_text(json.dumps(self.video_settings, indent=1) + "\n")
            return written

    ImagesOnly.__name__ = kind.__name__  # which its files hold
    return ImagesOnly


def _video_settings(directory: Path) -> dict[str, Any]:
    """Return the settings of the part for videos, from either of the files that may hold them."""
    if (directory / VIDEO_SETTINGS).is_file():
        return read_object(directory, VIDEO_SETTINGS)
    name = PROCESSOR_FILES[0]
    return dict(read_object(directory, name).get(VIDEO) or {}) if (directory / name).is_file() else {}


def _processor_class(directory: Path) -> Any:
    """Return the class of a directory's processor, from transformers' own module of it; None if it is unknown."""
    files = [name for name in PROCESSOR_FILES if (directory / name).is_file()]
    named = [read_object(directory, name).get("processor_class") for name in files]
    model_type = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False).model_type
    name = next(filter(None, named), PROCESSOR_MAPPING_NAMES.get(model_type))
    for kind, classes in PROCESSOR_MAPPING_NAMES.items():
        if name == classes or (not isinstance(classes, str) and name in classes):
            module = model_type_to_module_name(kind)
            try:
                found = importlib.import_module(f"transformers.models.{module}.processing_{module}")
            except ImportError:
                continue
            if hasattr(found, name):
                return getattr(found, name)
    return None
