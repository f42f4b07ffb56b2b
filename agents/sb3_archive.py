"""What a stable-baselines3 archive holds, read as data: its policy's class, architecture and weights.

An archive comes from anyone. Nothing in it is unpickled, and no member is read further than its limit. The plain values
of `policy_kwargs` give the architecture; the pickles beside them are never opened, so that only classes that we know by
name are built.
"""

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from common.errors import UserError
from common.json_file import first_fault, parse_json
from common.safe_pickle import require_bounded_work

MAX_MEMBER = 2**28  # bytes of a member, unpacked
NATURE_CNN = "stable_baselines3.common.torch_layers.NatureCNN"
ACTIVATIONS = {
    f"torch.nn.modules.activation.{one.__name__}": one
    for one in (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.SELU, nn.Sigmoid, nn.Mish)
}
TRAINING_ONLY = frozenset(
    {
        *("optimizer_class", "optimizer_kwargs", "ortho_init", "log_std_init", "full_std", "use_expln"),
        *("squash_output", "use_sde", "sde_net_arch"),
        "share_features_extractor",  # is seen in the weights
    }
)

Width = Annotated[int, Field(ge=1, le=2048)]
Widths = Annotated[list[Width], Field(max_length=8)]


class Networks(BaseModel):
    """Widths of the layers of the policy's and of the value's network."""

    model_config = ConfigDict(extra="forbid")

    pi: Widths = []
    vf: Widths = []


class ExtractorKwargs(BaseModel):
    """Of SB3's NatureCNN."""

    model_config = ConfigDict(extra="forbid")

    features_dim: Annotated[int, Field(ge=1, le=4096)] = 512
    normalized_image: bool = False


class PolicyKwargs(BaseModel):
    """The arguments of a policy that change how it plays."""

    model_config = ConfigDict(extra="forbid")

    net_arch: Widths | Networks | Annotated[list[Networks], Field(min_length=1, max_length=1)] | None = None
    n_quantiles: Annotated[int, Field(ge=1, le=1000)] | None = None
    features_extractor_kwargs: ExtractorKwargs = ExtractorKwargs()
    normalize_images: bool = True
    activation_fn: str | None = None
    features_extractor_class: str | None = None


@dataclass(frozen=True)
class Sb3Archive:
    """The module of a policy's class, the keyword arguments that build it, and its weights."""

    module: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor]


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"expected a stable-baselines3 archive (.zip), got {path}, which is not a file")


def archive_hash(path: Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of an archive: its name in results."""
    _require_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def read_archive(path: Path) -> Sb3Archive:
    """Return what an archive holds; `UserError` names what is wrong with the file."""
    _require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            data = parse_json(_read_member(archive, "data"), "its data")
            module, policy_kwargs = data["policy_class"]["__module__"], data.get("policy_kwargs") or {}
            weights = _load_weights(_read_member(archive, "policy.pth"))
        return Sb3Archive(str(module), _arguments(policy_kwargs, path), weights)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # a damaged archive can raise nearly anything: zlib's, struct's and pickle's own errors
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is not a stable-baselines3 archive, or is damaged: {reason}") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member, which may be unpacked to `MAX_MEMBER` bytes."""
    info = archive.getinfo(name)
    if info.file_size > MAX_MEMBER:
        raise UserError(f"expected at most {MAX_MEMBER:,} bytes in {name}, got {info.file_size:,}")
    return archive.read(info)


def _load_weights(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of `torch.save`, which is an archive too."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (total := sum(info.file_size for info in archive.infolist())) > MAX_MEMBER:
            raise UserError(f"expected at most {MAX_MEMBER:,} bytes of weights, got {total:,}")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                require_bounded_work(archive.read(name))
    weights = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError("expected policy.pth to hold tensors by name")
    return {str(name): tensor for name, tensor in weights.items()}


def _arguments(policy_kwargs: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments of a policy from the plain values of `policy_kwargs`; others are refused by name."""
    plain = {
        name: _class_name(value)
        for name, value in policy_kwargs.items()
        if name not in TRAINING_ONLY and not name.startswith(":")
    }
    try:
        found = PolicyKwargs.model_validate(plain, strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: expected policy_kwargs that can be built, {first_fault(error)}") from error
    if found.features_extractor_class not in (None, NATURE_CNN):
        extractor = found.features_extractor_class
        raise UserError(f"{path}: expected the features_extractor_class {NATURE_CNN}, got {extractor}")
    if found.activation_fn not in (None, *ACTIVATIONS):
        raise UserError(f"{path}: expected an activation_fn ({', '.join(ACTIVATIONS)}), got {found.activation_fn}")
    arguments = found.model_dump(exclude_unset=True, exclude={"features_extractor_class", "activation_fn"})
    if isinstance(net_arch := arguments.get("net_arch"), list) and net_arch and isinstance(net_arch[0], dict):
        arguments["net_arch"] = net_arch[0]  # as SB3 wrote it up to 1.7
    if found.activation_fn:
        arguments["activation_fn"] = ACTIVATIONS[found.activation_fn]
    return {name: value for name, value in arguments.items() if value is not None}


def _class_name(value: Any) -> Any:
    """Return the name in the text of a class, such as `<class 'torch.nn.modules.activation.Tanh'>`."""
    found = re.fullmatch(r"<class '([\w.]+)'>", value) if isinstance(value, str) else None
    return found[1] if found else value
