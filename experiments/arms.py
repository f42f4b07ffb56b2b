"""The arms of the paper's claim: an encoder frozen or adapted, taught pixel values, not taught, or taught a control.

A frozen encoder stays frozen in all trainings of its arm, an adapted one learns in all. The control is pixel value
prediction with the colours shuffled among images: it teaches the interface of coordinates and no detail.
"""

from pathlib import Path

from experiments import pvp_nano
from pretrain import pixels
from vlm import checkpoint

NO_PVP, PVP, SHUFFLED = "none", "pvp", "shuffled"
ARMS = (  # encoder, PVP; those that are to differ most come first
    ("adapted", PVP), ("adapted", NO_PVP), ("frozen", PVP), ("frozen", NO_PVP), ("adapted", SHUFFLED),
)  # fmt: skip


def teach_pixels(setting: pvp_nano.Setting, steps: int, encoder: str, pvp: str, seed: int, work: Path) -> Path:
    """Return the checkpoint that an arm's own training starts from, made now if it is not there.

    Without PVP it is the new model itself, around the semantic encoder; otherwise the open regime of `pvp-nano`, in so
    many steps.
    """
    out = work / f"pixels-{encoder}-{pvp}-{seed}"
    args = pvp_nano.training_args(setting, setting.regimes[0], encoder, seed, out)
    args.steps, args.shuffled = steps, pvp == SHUFFLED
    if not (out / "last").exists():
        out.mkdir(parents=True, exist_ok=True)
        if pvp == NO_PVP:
            checkpoint.save(pixels.start_model(args), out / "last")
        else:
            pixels.pretrain(args)
    return out / "last"
