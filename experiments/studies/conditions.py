"""The arms of the paper's claim: an encoder frozen or adapted, taught pixel values, not taught, or taught a control.

A frozen encoder stays frozen in all trainings of its arm, an adapted one learns in all. The control is pixel value
prediction with the colours shuffled among images: it teaches the interface of coordinates and no detail. What is taught
is the first regime of a setting of `experiments.studies.pvp_nano`; for `refer-nano` that of `pvp-nano` itself, so that the
models whose reading it measures are those that go on to masks.
"""

from pathlib import Path

from filelock import FileLock

from experiments.studies import pvp_nano
from pretrain.pvp import start_model, train_pvp
from vlm import checkpoint

NO_PVP, PVP, SHUFFLED = "none", "pvp", "shuffled"
ENCODER_ONLY = "sight"  # PVP, of which encoder and connector go on and the decoder does not
CONDITIONS = (  # encoder, PVP; those that are to differ most come first
    ("adapted", PVP), ("adapted", NO_PVP), ("frozen", PVP), ("frozen", NO_PVP), ("adapted", SHUFFLED),
)  # fmt: skip


def run_dir(setting: pvp_nano.ExperimentConfig, encoder: str, pvp: str, seed: int, work: Path) -> Path:
    """Return where what an arm starts from lies in `work`; what `pvp-nano` trains there lies there as well."""
    name = setting.regimes[0].name
    if pvp == NO_PVP:
        return work / f"start-{seed}"
    return work / (f"{name}-{encoder}-shuffled-{seed}" if pvp == SHUFFLED else f"{name}-{encoder}-{seed}")


def pretrain_condition(setting: pvp_nano.ExperimentConfig, encoder: str, pvp: str, seed: int, work: Path) -> Path:
    """Return the checkpoint that an arm's own training starts from, made now if it is not in `work`.

    Without PVP it is the new model itself, around the semantic encoder.
    """
    if pvp == ENCODER_ONLY:
        return _teach_sight(setting, encoder, seed, work)
    out = run_dir(setting, encoder, pvp, seed, work)
    args = pvp_nano.training_args(setting, setting.regimes[0], encoder, seed, out)
    args.shuffled = pvp == SHUFFLED
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / "lock"):  # several arms start from the same
        if (out / "last").exists():
            return out / "last"
        if pvp == NO_PVP:
            checkpoint.save(start_model(args), out / "last")
            return out / "last"
        return train_pvp(args)


def _teach_sight(setting: pvp_nano.ExperimentConfig, encoder: str, seed: int, work: Path) -> Path:
    taught, plain = (pretrain_condition(setting, encoder, pvp, seed, work) for pvp in (PVP, NO_PVP))
    out = taught.parent / ENCODER_ONLY
    with FileLock(taught.parent / "lock"):
        if not out.exists():
            old, new = checkpoint.load(taught), checkpoint.load(plain)
            new.encoder.load_state_dict(old.encoder.state_dict())
            new.connector.load_state_dict(old.connector.state_dict())
            checkpoint.save(new, out, checkpoint.read_training(taught))
    return out


def seconds_to_start(setting: pvp_nano.ExperimentConfig, encoder: str, pvp: str, seed: int, work: Path) -> float:
    """Return how long `pretrain_condition` takes, about."""
    there = (run_dir(setting, encoder, pvp, seed, work) / "last").exists()
    return 0.0 if pvp == NO_PVP or there else setting.regimes[0].steps * setting.regimes[0].seconds_a_step
