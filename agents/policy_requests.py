"""Requests to a served policy, as pydantic checks them: the chat form of OpenAI, and a small JSON form.

Whatever a body holds, it becomes one of these dataclasses or a `UserError` of one line. Images come with the request,
as data URLs or as bytes in base64: nothing is fetched.
"""

import base64
import binascii
import math
import re
from typing import Annotated, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agents.served_policy import MAX_FRAMES
from common.errors import UserError
from common.images import decode_rgb
from common.json_file import first_fault

MAX_BODY_BYTES = 2**23
MAX_PIXELS = 2**22  # of all frames of a request
MAX_MESSAGES, MAX_CELLS, MAX_WORDS = 256, 4096, 200
DATA_URL = re.compile(r"data:image/(png|jpeg|jpg);base64,")
SHORT = Annotated[str, Field(min_length=1, max_length=MAX_WORDS)]
Request = TypeVar("Request", bound=BaseModel)


class FramesRequest(BaseModel):
    """Frames uint8[n, H, W, 3], oldest first: their bytes in base64."""

    model_config = ConfigDict(extra="forbid", strict=True)

    frames: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**14)]], Field(min_length=4, max_length=4)]

    def array(self) -> UInt8[np.ndarray, "n H W 3"]:
        """Return the frames; `UserError` if they are not of the shape."""
        if self.shape[0] > MAX_FRAMES or self.shape[3] != 3:
            raise UserError(f"expected a shape of up to {MAX_FRAMES} frames, [n, H, W, 3], got {self.shape}")
        content, size = _decode_base64(self.frames, "frames"), math.prod(self.shape)
        if len(content) != size or size > 3 * MAX_PIXELS:
            raise UserError(f"expected frames of {size:,} bytes, up to {3 * MAX_PIXELS:,}, got {len(content):,}")
        return np.frombuffer(content, np.uint8).reshape(self.shape)


class ActRequest(FramesRequest):
    """Asks for an action. actions: the legal ones, by default the game's minimal set."""

    game: SHORT
    actions: Annotated[list[SHORT], Field(min_length=1, max_length=18)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class PixelsRequest(FramesRequest):
    """Asks for the colors of cells, (row, column) of the checkpoint's grid; by default of all."""

    cells: Annotated[list[tuple[int, int]], Field(min_length=1, max_length=MAX_CELLS)] | None = None


class MaskRequest(FramesRequest):
    """Asks for the mask of an expression."""

    expression: SHORT


class ImageUrl(BaseModel):
    """A picture as a data URL."""

    url: str


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """A message; images count in those of the user."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_MESSAGES)]

    def parts(self) -> list[Part]:
        """Return the content as parts."""
        return [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class ChatRequest(BaseModel):
    """A request for a chat completion; entries of other names are for other models and ignored."""

    model_config = ConfigDict(strict=True)

    model: SHORT
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: Literal[False] | None = None
    n: Literal[1] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def text(self) -> str:
        """Return the text of the user's last message."""
        found = [message for message in self.messages if message.role == "user"]
        return "\n".join(part.text for part in found[-1].parts() if part.type == "text") if found else ""

    def array(self, last: int) -> UInt8[np.ndarray, "n H W 3"]:
        """Return the last images of the user's messages, oldest first, at most `last` of them."""
        parts = [part for message in self.messages if message.role == "user" for part in message.parts()]
        urls = [part.image_url.url if part.image_url else "" for part in parts if part.type == "image_url"][-last:]
        if not urls:
            raise UserError("expected a frame: a message of the user with an image_url, got none")
        limit = MAX_PIXELS // len(urls)
        frames = [_read_data_url(url, f"image {number}", limit) for number, url in enumerate(urls, start=1)]
        if len({frame.shape for frame in frames}) > 1:
            raise UserError("expected images of one size, got several")
        return np.stack(frames)


def parse_request(body: bytes, expected: type[Request]) -> Request:
    """Return a body as a request; `UserError` names the entry that does not fit."""
    try:
        return TypeAdapter(expected).validate_json(body, strict=True)
    except ValidationError as error:
        raise UserError(f"expected a request in JSON: {first_fault(error)}") from error


def _decode_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"expected {name} in base64: {error}") from error


def _read_data_url(url: str, name: str, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    if not (head := DATA_URL.match(url)):
        raise UserError(f"expected {name} as data:image/png;base64,..., got {url[:40]!r}; nothing is fetched")
    return decode_rgb(_decode_base64(url[head.end() :], name), name, max_pixels=max_pixels)
