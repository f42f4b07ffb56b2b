"""Behavior cloning as an objective: the cross-entropy of the exact probabilities of the legal text answers."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.auxiliary_action_head import AuxiliaryActionHead
from agents.bc_dataset import BCBatch, BCSampler, GameBatch, LabelledDataset
from common.errors import UserError
from envs.games import find_game
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.training.objective import Losses, Objective, encode_frames, images_of


class BehaviorCloningObjective(Objective[PixelVLM, BCBatch]):
    """Cross-entropy with the targets, over the same scores that play uses (`vlm.decoding.candidate_scoring`).

    `aux_loss_weight` is the weight of the same loss of the auxiliary action head, if there is one. The
    probabilities of a `distilled` policy are the targets of all rows, where there is one (Rusu et al. 2015).
    """

    attention = "eager"  # on a CPU, backward through sdpa is slower over so few tokens

    def __init__(
        self,
        vlm: PixelVLM,
        sampler: BCSampler,
        head: AuxiliaryActionHead | None,
        aux_loss_weight: float,
        distilled: PixelVLM | None = None,
    ):
        super().__init__(vlm, sampler)
        self.head, self.aux_loss_weight = head, aux_loss_weight
        if distilled and distilled.history != vlm.history:
            raise UserError(
                f"--distill-from: expected a policy of {vlm.history} frames, got one of {distilled.history}"
            )
        self.scorers = _scorers(vlm, sampler)
        self.distilled, self.distilled_scorers = distilled, _scorers(distilled, sampler) if distilled else {}

    def modules(self) -> Mapping[str, nn.Module]:
        """Return the auxiliary action head."""
        return {"action_head": self.head} if self.head else {}

    def encode(self, batch: BCBatch) -> list[ImageFeatures]:
        """Return the features of each game's frames."""
        return [self.vlm.encode_images(images_of(self.vlm, part)) for part in batch.games]

    def loss(self, features: list[ImageFeatures], batch: BCBatch) -> Losses:
        """Return the mean loss over games, and for each game its loss, its accuracy and its auxiliary loss."""
        losses: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for part, own in zip(batch.games, features, strict=True):
            if self.distilled:
                part = self._with_distilled_targets(part)
            if not batch.aux_only or self.head is None:
                log_probs = self.scorers[part.game].log_probs(own)  # [B, A]
                losses.append(_cross_entropy(log_probs, part))
                metrics[f"{part.game}/loss"] = losses[-1]
                accuracy = (log_probs.argmax(1) == part.targets.argmax(1)).float().mean()
                metrics[f"{part.game}/action_accuracy"] = accuracy
            if self.head:
                aux = _cross_entropy(self.head(part.game, own.tokens), part)
                losses.append(self.aux_loss_weight * aux)
                metrics[f"{part.game}/aux_loss"] = aux
        return Losses(torch.stack(losses).sum() / len(batch.games), metrics)

    @torch.no_grad()
    def _with_distilled_targets(self, batch: GameBatch) -> GameBatch:
        """Return the batch with the distilled policy's probabilities as targets, every row alike."""
        assert self.distilled
        log_probs = self.distilled_scorers[batch.game].log_probs(encode_frames(self.distilled, batch.frames))
        return dataclasses.replace(batch, targets=log_probs.softmax(-1), weights=torch.ones_like(batch.weights))


def _scorers(vlm: PixelVLM, sampler: BCSampler) -> dict[str, CandidateScorer]:
    """Return the scorer of each game's legal answers."""
    names = {game: datasets[0].data.info.action_names for game, datasets in sampler.datasets.items()}
    return {
        game: CandidateScorer(vlm, vlm.action_prompt(find_game(game).title, own), own) for game, own in names.items()
    }


def _cross_entropy(log_probs: Tensor, batch: GameBatch) -> Tensor:
    return (batch.weights * -(batch.targets * log_probs).sum(1)).sum() / batch.weights.sum()


def new_action_head(vlm: PixelVLM, datasets: Sequence[LabelledDataset], seed: int) -> AuxiliaryActionHead:
    """Return an auxiliary action head for the games of some datasets, with weights drawn from a seed."""
    games = {
        dataset.data.info.game: (*dataset.data.frame(0).shape[:2], len(dataset.data.info.action_names))
        for dataset in datasets
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AuxiliaryActionHead(vlm, games).to(vlm.device)
