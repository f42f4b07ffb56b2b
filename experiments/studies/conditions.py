"""The conditions of the paper's claims: the encoder frozen or adapted; pre-trained with PVP, without it, or a control.

A frozen encoder stays frozen in all trainings of its condition, an adapted one trains in all. One condition keeps the
encoder and connector that PVP has adapted and takes a new decoder, since PVP's decoder has learned to look at places.
The control is pixel value prediction with the colours shuffled among images: it trains the coordinate interface and no
detail. PVP is that of the first regime of a config of `experiments.studies.pvp_nano`.
"""

from pathlib import Path

from common.output_lock import output_lock
from experiments.studies import pvp_nano
from pretrain.pvp import train_pvp
from pretrain.pvp_model import start_model
from vlm import checkpoint

NO_PVP, PVP, SHUFFLED = "none", "pvp", "shuffled"
ENCODER_ONLY = "encoder_only"  # PVP's encoder and connector with a new decoder
CONDITIONS = (  # (encoder, PVP); the most different ones come first
    ("adapted", PVP), ("adapted", NO_PVP), ("frozen", PVP), ("frozen", NO_PVP), ("adapted", ENCODER_ONLY),
    ("adapted", SHUFFLED),
)  # fmt: skip


def run_dir(config: pvp_nano.ExperimentConfig, encoder: str, pvp: str, seed: int, work: Path) -> Path:
    """Return the directory in `work` of a condition's pre-training, shared with `pvp-nano`."""
    name = config.regimes[0].name
    if pvp == NO_PVP:
        return work / f"start-{seed}"
    return work / (f"{name}-{encoder}-shuffled-{seed}" if pvp == SHUFFLED else f"{name}-{encoder}-{seed}")


def pretrain_condition(config: pvp_nano.ExperimentConfig, encoder: str, pvp: str, seed: int, work: Path) -> Path:
    """Return the checkpoint that a condition's own training starts from; make it if `work` does not hold it.

    Without PVP it is the new model itself, around the semantic encoder.
    """
    if pvp == ENCODER_ONLY:
        return _replace_decoder(config, encoder, seed, work)
    out = run_dir(config, encoder, pvp, seed, work)
    training = pvp_nano.training_config(config, config.regimes[0], encoder, seed, out)
    training = training.replace(shuffle_targets=pvp == SHUFFLED)
    with output_lock(out, wait=True):  # several conditions start from the same checkpoint
        if (out / "last").exists():
            return out / "last"
        if pvp == NO_PVP:
            checkpoint.save(start_model(training), out / "last")
            return out / "last"
        return train_pvp(training)


def _replace_decoder(config: pvp_nano.ExperimentConfig, encoder: str, seed: int, work: Path) -> Path:
    trained, plain = (pretrain_condition(config, encoder, pvp, seed, work) for pvp in (PVP, NO_PVP))
    out = trained.parent / ENCODER_ONLY
    with output_lock(trained.parent, wait=True):
        if not out.exists():
            old, new = checkpoint.load(trained), checkpoint.load(plain)
            new.encoder.load_state_dict(old.encoder.state_dict())
            new.connector.load_state_dict(old.connector.state_dict())
            if new.patch_expansion and old.patch_expansion:
                new.patch_expansion.load_state_dict(old.patch_expansion.state_dict())
            checkpoint.save(new, out, checkpoint.read_training(trained))
    return out


def pretraining_seconds(config: pvp_nano.ExperimentConfig, encoder: str, pvp: str, seed: int, work: Path) -> float:
    """Return how long `pretrain_condition` takes, about."""
    exists = (run_dir(config, encoder, pvp, seed, work) / "last").exists()
    return 0.0 if pvp == NO_PVP or exists else config.regimes[0].steps * config.regimes[0].seconds_per_step
