"""The verdict of each study on the paper's claim, and its effects beside the paper's number (Gou et al. 2024)."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from envs.games import find_game
from experiments.statistics import Mean, Row, difference, filter_rows, games_of, paired_differences

PAPER_GAMES = (80.34, 70.54)  # mean score in two games
PAPER_CIOU = 10.19  # on average
BOTH, PVP, UNFREEZING = (  # (condition, the condition without it)
    (("adapted", "pvp"), ("frozen", "none")),
    (("adapted", "pvp"), ("adapted", "none")),
    (("adapted", "none"), ("frozen", "none")),
)


@dataclass(frozen=True)
class Effect:
    """A line of a chart: a value with its 95 % interval and its text; no value: a direction that the paper states."""

    label: str
    text: str
    value: float | None = None
    half_width: float = 0.0
    from_paper: bool = False

    @classmethod
    def of(cls, label: str, mean: Mean, digits: int = 1, scale: float = 1.0, unit: str = "") -> "Effect":
        """Return an effect of this repository's studies."""
        text = mean.text(digits, scale, "+").replace(" [", f"{unit} [")
        return cls(label, text, scale * mean.value, scale * (mean.half_width or 0.0))


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, whether it was reproduced, one sentence of why, and a chart's effects along one axis."""

    section: str
    claim: str
    verdict: str
    sentence: str
    effects: list[Effect]
    axis: str


def headline_findings(results: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Return the three findings, of results by name; a study without one is not measured yet."""
    studies = {"pvp-nano": precision_finding, "games-nano": play_finding, "refer-nano": segmentation_finding}
    return [find(results[name]["rows"] if name in results else []) for name, find in studies.items()]


def _unmeasured(study: str) -> tuple[str, str]:
    return "Not measured yet", f"python -m experiments.run {study} measures it."


def _pvp_alone(means: Collection[Mean], digits: int, scale: float = 1.0) -> str:
    """Return PVP's own part as the end of a sentence."""
    values = " and ".join(f"{scale * mean.value:+.{digits}f}" for mean in means)
    return f"PVP's own part is {values}" + ("" if any(mean.sign for mean in means) else ", not distinguishable from 0")


def _verdict(together: Iterable[Mean], pvp_alone: Iterable[Mean]) -> str:
    """Return the verdict on "PVP with an unfrozen encoder helps": half of it, where PVP has no part in the gain."""
    if not all(mean.sign > 0 for mean in together):
        return "Not reproduced"
    return "Reproduced" if all(mean.sign > 0 for mean in pvp_alone) else "Half reproduced"


def precision_finding(rows: list[Row]) -> Finding:
    """Return what an unfrozen encoder changes in the error of pixel values, in percent."""
    changes, names = {}, {"held-out games": "unseen games", "held-out episodes": "seen games"}
    for name in ("held-out games", "photographs", "synthetic", "held-out episodes"):
        own = filter_rows(rows, set=name, sample=False)
        adapted, frozen = (filter_rows(own, encoder=encoder) for encoder in ("adapted", "frozen"))
        if ratio := difference(adapted, frozen, "mae", ratio=True):
            changes[names.get(name, name)] = Mean(ratio.value - 1, ratio.half_width, ratio.n)
    verdict, sentence = _unmeasured("pvp-nano")
    if main := changes.get("unseen games"):
        verdict = "Reproduced" if main.sign < 0 else "Not reproduced"
        texts = ", ".join(f"{mean.text(0, 100, '+').partition(' ')[0]} % on {name}" for name, mean in changes.items())
        sentence = f"Unfreezing the encoder changes the error of pixel values by {texts}."
    effects = [Effect.of(name, mean, 0, 100, " %") for name, mean in changes.items()]
    effects.append(Effect("paper", "lower (no number)", from_paper=True))
    axis = "change of the error by unfreezing, %; lower is better"
    return Finding("pvp-nano", "A frozen encoder costs pixel precision", verdict, sentence, effects, axis)


def play_finding(rows: list[Row]) -> Finding:
    """Return what PVP and an unfrozen encoder add to scores, with all demonstrations."""
    both, pvp = (
        {find_game(g).title: mean for g in games_of(rows) if (mean := paired_differences(rows, 1.0, g, *pair)[0])}
        for pair in (BOTH, PVP)
    )
    verdict, sentence, effects = *_unmeasured("games-nano"), []
    if both and pvp:
        verdict = _verdict(both.values(), pvp.values())
        added = " and ".join(f"{mean.value:+.0f} in {game}" for game, mean in both.items())
        sentence = f"Together they change the mean score by {added}; {_pvp_alone(pvp.values(), 0)}."
        for name, means in (("both", both), ("PVP alone", pvp)):
            effects += [Effect.of(f"{game}, {name}", mean, 0) for game, mean in means.items()]
    effects += [Effect(f"paper, game {n}", f"+{gain}", gain, from_paper=True) for n, gain in enumerate(PAPER_GAMES, 1)]
    axis = "points of mean score; the paper's games are others: compare signs"
    return Finding("games-nano", "PVP and unfreezing help play", verdict, sentence, effects, axis)


def segmentation_finding(rows: list[Row]) -> Finding:
    """Return what PVP and an unfrozen encoder add to referring segmentation by the mask head."""
    own, means = filter_rows(rows, mask="head", set="test"), {}
    new_decoder = (("adapted", "encoder_only"), BOTH[1])
    pairs = {"both": BOTH, "both, new decoder": new_decoder, "PVP alone": PVP, "unfreezing alone": UNFREEZING}
    for name, pair in pairs.items():
        with_it, without = (filter_rows(own, encoder=encoder, pvp=pvp) for encoder, pvp in pair)
        if mean := difference(with_it, without, "ciou"):
            means[name] = mean
    verdict, sentence = _unmeasured("refer-nano")
    if (both := means.get("both")) and (pvp := means.get("PVP alone")):
        verdict = _verdict([both], [pvp])
        sentence = f"Together they change cIoU by {both.text(1, 100, '+')} points; {_pvp_alone([pvp], 1, 100)}."
    effects = [Effect.of(name, mean, 1, 100) for name, mean in means.items()]
    effects.append(Effect("paper", f"+{PAPER_CIOU}", PAPER_CIOU, from_paper=True))
    claim = "PVP and unfreezing help referring segmentation"
    return Finding("refer-nano", claim, verdict, sentence, effects, "points of cIoU")
