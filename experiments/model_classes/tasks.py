"""The tasks that a tiny checkpoint of a class of transformers goes through, each of which it does or is refused.

    row = try_task(Trial("llava", Path("runs/model-classes/llava")), "scores")

A task checks what it has done: scores and losses beside the class's own forward passes, weights before and after a
training, a killed and resumed training beside an unbroken one. A fault raises; a `UserError` is a refusal. Tests run
the same tasks and compare their rows with the committed ones.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from agents import play
from agents.bc_objective import BehaviorCloningObjective
from agents.clone import clone
from agents.clone_config import CONFIGS as CLONE_CONFIGS
from agents.model_limits import ModelLimits
from agents.vlm_agent import VlmAgent
from common.errors import UserError
from common.results import read_result
from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.model_classes import TOLERANCE
from experiments.model_classes.tiny_checkpoints import write
from pretrain import reconstruct
from pretrain.answer_objective import IGNORE_INDEX
from pretrain.pvp import pvp_objective, train_pvp
from pretrain.pvp_config import CONFIGS as PVP_CONFIGS
from pretrain.pvp_config import PvpConfig
from pretrain.pvp_objective import PvpBatch, PvpObjective
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer, generate_text, prompt_ids
from vlm.image_tokens import frame_share_seen, image_tokens
from vlm.model import PixelVLM
from vlm.segmentation.referring_segmenter import ReferringSegmenter
from vlm.training.objective import Objective

GAME, ACTIONS = "Pong", ("noop", "fire", "up", "up right")
FRAMES_PLAYED = 8  # of the emulator
NEW_TOKENS = 4  # of a generated answer
POINT_GRID = 3
LORA = {"decoder": "lora", "lora_rank": 2}
TRAINER = ("save_steps=1", "warmup_steps=0", "dataloader_num_workers=0", "report_to=none")

Figures = dict[str, Any]


class TaskError(Exception):
    """A task was done wrongly."""


def require(condition: Any, what: str) -> None:
    """Raise `TaskError` unless a condition holds."""
    if not condition:
        raise TaskError(f"expected {what}")


@dataclass
class Trial:
    """A tiny checkpoint of a class, by its name, on its way through the tasks; tasks share its trainings."""

    name: str
    work: Path

    @cached_property
    def directory(self) -> Path:
        """Its checkpoint, as a download would leave it."""
        return write(self.name, self.work / "model")

    @cached_property
    def model_class(self) -> str:
        """The name of its class."""
        return json.loads((self.directory / "config.json").read_text())["architectures"][0]

    @cached_property
    def vlm(self) -> PixelVLM:
        """The model; tasks leave it as it is."""
        return checkpoint.load(self.directory)

    @cached_property
    def dataset(self) -> Path:
        """A dataset of one game whose frames are noise."""
        rng = np.random.default_rng(1)
        info = DatasetInfo("Carnival", ACTIONS, MACHADO2018, "test", None, "abc", {})
        noise, rewards = rng.integers(0, 256, (8, 214, 160, 3), dtype=np.uint8), np.ones(8, np.float32)
        actions = rng.integers(len(ACTIONS), size=8)
        episode = Episode(noise, actions, rewards, None, terminated=True, truncated=False, seed=1)
        EpisodeWriter(self.work / "data", info).append(episode)
        return self.work / "data"

    @cached_property
    def pvp(self) -> Path:
        """The checkpoint of two steps of pixel value prediction with everything unfrozen."""
        return train_pvp(self.pvp_config("pvp"))

    @cached_property
    def pvp_lora(self) -> Path:
        """That of two steps by adapters of the decoder."""
        return train_pvp(self.pvp_config("pvp-lora", **LORA))

    @cached_property
    def cloned(self) -> Path:
        """The checkpoint of two steps of behavior cloning."""
        return clone(self.clone_config("clone"))

    def pvp_config(self, run: str, **fields: Any) -> PvpConfig:
        """Return the configuration of a short training on pixel values."""
        return PVP_CONFIGS["default"].replace(
            init=self.directory, out=self.work / run, synthetic=1, size=(42, 32), grid="8", images=2, questions=2,
            steps=2, trainer=TRAINER, **fields,
        )  # fmt: skip

    def clone_config(self, run: str) -> Any:
        """Return the configuration of a short training to play."""
        return CLONE_CONFIGS["default"].replace(
            init=self.directory, out=self.work / run, data=(self.dataset,), batch_size=2, eval_every=0, steps=2,
            trainer=TRAINER,
        )  # fmt: skip


def noise_frames(count: int, history: int = 1, seed: int = 0) -> np.ndarray:
    """Return frames of noise, uint8[count, history, 210, 160, 3]."""
    shape = (count, history, 210, 160, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@torch.no_grad()
def generated_log_probs(vlm: PixelVLM, images: Any, prompt: str, answer: Sequence[int]) -> Tensor:
    """Return the log-probability of an answer's tokens, given to the class's own `generate` one after the other."""
    ids = torch.tensor(prompt_ids(vlm, prompt, vlm.image_ids(images))).expand(images.num_images, -1)
    output = vlm.model.generate(
        **vlm.forward_inputs(ids, images), max_new_tokens=len(answer), min_new_tokens=len(answer), do_sample=False,
        prefix_allowed_tokens_fn=lambda _, tokens: [answer[len(tokens) - ids.shape[1]]],
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    pairs = zip(output.logits, answer, strict=True)
    return torch.stack([logits.float().log_softmax(-1)[:, token] for logits, token in pairs]).sum(0)


def image_input(trial: Trial) -> Figures:
    """Count the tokens of a frame, and measure what part of it is seen."""
    return {"image_tokens": image_tokens(trial.vlm), "share_seen": round(frame_share_seen(trial.vlm), 4)}


def scores(trial: Trial) -> Figures:
    """Play by the exact probabilities of all actions, which are those of the class's own generation."""
    vlm, stacks = trial.vlm, noise_frames(3)
    images, prompt = vlm.preprocess(stacks), vlm.action_prompt(GAME, ACTIONS)
    scorer, end = CandidateScorer(vlm, prompt, ACTIONS, cache_prompt=True), vlm.tokenizer.eos_token_id
    with torch.no_grad():
        log_probs = scorer.log_probs(vlm.encode_images(images))
    own = torch.stack([generated_log_probs(vlm, images, prompt, [*c, end]) for c in scorer.candidates], dim=1)
    difference = float((log_probs - own).abs().max())
    require(difference < TOLERANCE, f"the class's own probabilities, got {difference:.2g} nats off")
    require(log_probs.diff(dim=0).abs().amax(1).min() > TOLERANCE, "frames with different scores")
    torch_scores, auto_scores = (_agent_scores(vlm, engine, stacks[:, 0]) for engine in ("torch", "auto"))
    require(np.array_equal(torch_scores, auto_scores), "the same scores of both engines")
    require(
        np.allclose(torch_scores, log_probs.softmax(-1).numpy(), atol=TOLERANCE), "an agent's scores to be the same"
    )
    return {"passes": 1 if scorer.shares_prompt else len(ACTIONS), "difference": float(f"{difference:.1g}")}


def _agent_scores(vlm: PixelVLM, engine: str, frames: np.ndarray) -> np.ndarray:
    """Return an agent's scores for frames, which it sees one at a time."""
    agent = VlmAgent(vlm, GAME, ACTIONS, engine=engine)
    agent.reset([1])
    return np.concatenate([agent.act(frame[None]).scores for frame in frames])


def openvino(trial: Trial) -> Figures:
    """Play in a graph of OpenVINO."""
    frames = noise_frames(2)[:, 0]
    compiled, expected = (_agent_scores(trial.vlm, engine, frames) for engine in ("openvino", "torch"))
    require(np.allclose(compiled, expected, atol=TOLERANCE), "the same scores of both engines")
    return {}


@torch.no_grad()
def generation(trial: Trial) -> Figures:
    """Play by free answers, which are those of greedy forward passes of the class's own."""
    vlm, stacks = trial.vlm, noise_frames(2)
    images, prompt = vlm.preprocess(stacks), vlm.action_prompt(GAME, ACTIONS)
    ids = torch.tensor(prompt_ids(vlm, prompt, vlm.image_ids(images))).expand(len(stacks), -1)
    start = ids.shape[1]
    for length in range(NEW_TOKENS):
        logits = vlm.model(**vlm.forward_inputs(ids, images, length)).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    for found, row in zip(generate_text(vlm, images, prompt, NEW_TOKENS), ids[:, start:].tolist(), strict=True):
        ends = [i for i, token in enumerate(row) if token in vlm.end_ids]
        expected = vlm.tokenizer.decode(row[: ends[0] if ends else None], skip_special_tokens=True).strip()
        require(found == expected, f"the answer {expected!r}, got {found!r}")
    return {}


def played(trial: Trial) -> Figures:
    """Play the first frames of a game by the command, both ways; its result names the checkpoint."""
    _play(trial, "scores")
    _play(trial, "generate")
    return {}


def _play(trial: Trial, decode: Literal["scores", "generate"]) -> None:
    out = trial.work / f"play-{decode}"
    args = play.Args(
        checkpoint=trial.directory, decode=decode, max_frames=FRAMES_PLAYED, video=False, out=out,
        limits=ModelLimits(max_new_tokens=NEW_TOKENS),
    )  # fmt: skip
    play.play(args)
    (file,) = out.glob("*.json")
    (row,) = read_result(file)["rows"]
    require(row["checkpoint"] == checkpoint.content_hash(trial.directory), "the checkpoint's hash in the result")
    require(row["steps"] == FRAMES_PLAYED // 4, f"a step in four frames, got {row['steps']}")


def packed_loss(trial: Trial) -> Figures:
    """Compute the loss of many questions about an image in one pass, which is that of separate passes."""
    vlm, config = trial.vlm, trial.pvp_config("unused")
    objective = pvp_objective(vlm, config.data, config.run.steps)
    batch = objective.sampler(0, objective.rng(0, 0))
    with torch.no_grad():
        found, expected = objective.loss(objective.encode(batch), batch).loss, separate_loss(vlm, objective, batch)
    difference = abs(float(found - expected))
    require(difference < TOLERANCE, f"the loss of separate passes, {float(expected):.6f}, got {float(found):.6f}")
    return {"difference": float(f"{difference:.1g}")}


def separate_loss(vlm: PixelVLM, objective: PvpObjective, batch: PvpBatch) -> Tensor:
    """Return the mean loss of a batch's answers by a pass of the class's own for each question."""
    images, shared, losses = vlm.preprocess(batch.frames), objective.prompts.prefix_ids.tolist(), []
    count = len(batch.frames)
    for number in range(batch.input_ids.shape[1]):
        tokens, labels = batch.input_ids[:, number], batch.labels[:, number]
        prefix = torch.tensor([*vlm.bos_ids, *vlm.image_ids(images), *shared]).expand(count, -1)
        logits = vlm.model(**vlm.forward_inputs(torch.cat([prefix, tokens], dim=1), images)).logits
        own = logits[:, prefix.shape[1] :].float().transpose(1, 2)
        losses.append(torch.nn.functional.cross_entropy(own, labels, ignore_index=IGNORE_INDEX, reduction="none"))
    return torch.stack(losses, dim=1)[batch.labels != IGNORE_INDEX].mean()


def pvp(trial: Trial) -> Figures:
    """Train pixel value prediction with everything unfrozen."""
    return _require_moved(trial.pvp, encoder=True)


def pvp_frozen(trial: Trial) -> Figures:
    """Train pixel value prediction with a frozen encoder."""
    return _require_moved(train_pvp(trial.pvp_config("pvp-frozen", encoder_learning_rate=0.0)), encoder=False)


def pvp_lora(trial: Trial) -> Figures:
    """Train pixel value prediction by adapters of the decoder, with the encoder unfrozen."""
    return _require_moved(trial.pvp_lora, encoder=True)


def cloning(trial: Trial) -> Figures:
    """Train play by behavior cloning."""
    return _require_moved(trial.cloned, encoder=True)


def _require_moved(trained: Path, encoder: bool) -> Figures:
    updates = checkpoint.read_training(trained)["parameter_updates"]
    moved = {role for role, update in updates.items() if update["changed"]}
    expected = {"connector", "decoder"} | ({"encoder"} if encoder else set())
    require(moved == expected, f"{sorted(expected)} to have moved, got {sorted(moved)}")
    return {}


def reconstruct_image(trial: Trial) -> Figures:
    """Reconstruct an image from the model's answers for its pixels."""
    file = trial.work / "frame.png"
    Image.fromarray(noise_frames(1)[0, 0]).save(file)
    args = reconstruct.Args(
        image=(file,), checkpoint=(trial.directory,), grid="4", out=trial.work / "reconstruct", chunk=16
    )
    rows = [row for row in reconstruct.reconstruct(args) if "checkpoint" in row]
    require([row["n"] for row in rows] == [16], "the metrics of 16 cells")
    return {}


def points(trial: Trial) -> Figures:
    """Find what words mean by points."""
    masks = ReferringSegmenter(trial.vlm, None, POINT_GRID).predict(noise_frames(1)[0], ["the red ghost"])
    require(masks.shape == (1, 210, 160) and np.isfinite(masks).all(), "a mask of the frame's size")
    return {}


def resume(trial: Trial) -> Figures:
    """Resume trainings that a kill ended, to the weights of unbroken ones."""

    def cloned() -> Path:
        return clone(trial.clone_config("clone-killed"))

    _require_same_weights(trial.cloned, _killed(BehaviorCloningObjective, cloned))
    try:
        unbroken = {"full": (trial.pvp, {}), "lora": (trial.pvp_lora, LORA)}
    except UserError:  # a task of its own says so
        return {"trainings": 1}
    for decoder, (expected, fields) in unbroken.items():
        config = trial.pvp_config(f"pvp-{decoder}-killed", **fields)
        _require_same_weights(expected, _killed(PvpObjective, partial(train_pvp, config)))
    require(train_pvp(trial.pvp_config("pvp")) == trial.pvp, "a finished training that is repeated to stay as it is")
    return {"trainings": 1 + len(unbroken)}


def _killed(objective: type[Objective], train: Callable[[], Path]) -> Path:
    """Return what a training comes to whose second step is killed, and which is then repeated."""
    with _ended_at_step(objective, 2):
        try:
            train()
        except KeyboardInterrupt:
            pass
        else:
            raise TaskError("expected a training that is killed")
    return train()


@contextmanager
def _ended_at_step(objective: type[Objective], step: int) -> Iterator[None]:
    """Let the n-th loss of an objective end its training, within the context."""
    compute, calls = objective.loss, []

    def loss(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == step:
            raise KeyboardInterrupt
        return compute(self, *arguments)

    with mock.patch.object(objective, "loss", loss):
        yield


def _require_same_weights(one: Path, other: Path) -> None:
    first, second = (checkpoint.load(directory).model.state_dict() for directory in (one, other))
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    require(same, f"the weights of {one} in {other}")


def reload(trial: Trial) -> Figures:
    """Load what was trained by plain transformers, without a missing and without an unexpected key."""
    try:
        trained = [trial.cloned, trial.pvp, trial.pvp_lora]
    except UserError:
        trained = [trial.cloned]
    for directory in trained:
        plain, report = AutoModelForImageTextToText.from_pretrained(
            directory, output_loading_info=True, trust_remote_code=False
        )
        require(not report["missing_keys"] and not report["unexpected_keys"], f"all keys of {directory} and no other")
        own = checkpoint.load(directory).model.state_dict()
        require(all(torch.equal(own[name], tensor) for name, tensor in plain.state_dict().items()), "the same weights")
    return {"checkpoints": len(trained)}


TASKS: dict[str, Callable[[Trial], Figures]] = {
    "image input": image_input,
    "scores": scores,
    "generation": generation,
    "OpenVINO": openvino,
    "play": played,
    "packed loss": packed_loss,
    "PVP": pvp,
    "PVP, frozen encoder": pvp_frozen,
    "PVP, LoRA": pvp_lora,
    "cloning": cloning,
    "reconstruction": reconstruct_image,
    "points": points,
    "resumed": resume,
    "reloaded": reload,
}
SLOW_TASKS = ("play", "PVP", "PVP, frozen encoder", "PVP, LoRA", "cloning", "resumed", "reloaded")  # take seconds


def try_task(trial: Trial, task: str) -> Figures:
    """Return the row of a task: whether the class does it, with its figures, or is refused, with the reason.

    Raises:
        TaskError: it was done wrongly.
    """
    row = {"model_class": trial.model_class, "task": task}
    try:
        return {**row, "done": True, **TASKS[task](trial)}
    except UserError as error:
        reason = str(error)
        require("\n" not in reason and str(trial.work) not in reason, f"a reason in one line, got {reason!r}")
        return {**row, "done": False, "reason": reason.removeprefix(trial.model_class).strip()}
