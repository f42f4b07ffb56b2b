"""The card of an exported dataset: what the hub reads in its head, and what a reader asks for below it."""

import numpy as np
from datasets import __version__ as datasets_version
from huggingface_hub import DatasetCard, DatasetCardData

from common.markdown import card_text, code_block, markdown_table, plain
from common.provenance import command_line
from envs.episode_file import FEATURES
from envs.episodes import EpisodeDataset
from envs.games import find_game

MEANINGS = {
    "frame": "the observation, as a PNG",
    "action": "the number of the action taken in it, see below",
    "action_values": "an expert's value of every action; empty where it did not label the step",
    "reward": "of the game, unclipped",
    "episode": "the emulator's seed",
    "step": "of the agent, from 0",
    "terminated": "the game ended at this step",
    "truncated": "the game was cut off after this step",
}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
MAX_EPISODES = 200  # in the table of a card


def size_category(rows: int) -> str:
    """Return the hub's name of a dataset's size."""
    return next((name for limit, name in SIZES if rows < limit), "10M<n<100M")


def card_data(data: EpisodeDataset, license_id: str | None) -> DatasetCardData:
    """Return the head of a dataset's card."""
    info = data.info
    return DatasetCardData(
        license=license_id,
        pretty_name=f"{find_game(info.game).title}, played by {info.agent}",
        task_categories=["reinforcement-learning"],
        tags=["atari", "arcade-learning-environment", "imitation-learning", "behavior-cloning", "pvplay"],
        size_categories=[size_category(len(data))],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/episode-*.parquet"}]}],
        dataset_info={
            "features": FEATURES._to_yaml_list(),
            "splits": [{"name": "train", "num_examples": len(data)}],
        },
        game=info.game,
    )


def dataset_card(data: EpisodeDataset, license_id: str | None = None) -> DatasetCard:
    """Return a dataset's card: game, agent, protocol, seeds, episodes, scores and how to read it."""
    info, game = data.info, find_game(data.info.game)
    known = info.is_scored
    lengths = np.diff([*np.unique(data.starts), len(data)])
    scores = f"mean {np.mean(data.scores):g}, {min(data.scores):g} to {max(data.scores):g}" if known else "unknown"
    facts = {
        "game": f"{game.title} (ALE/{game.name}-v5)",
        "agent": info.agent,
        "labels": info.labels or "none",
        "episodes": f"{len(data.seeds)}, {len(data):,} steps",
        "scores": scores,
        "frames": " x ".join(map(str, data.frame(0).shape)),
        **{f"protocol: {name}": value for name, value in info.protocol.to_dict().items()},
        "commit": info.commit,
        **{f"versions: {name}": version for name, version in info.versions.items()},
    }
    episodes = [
        {"seed": seed, "steps": int(length), "score": f"{score:g}" if known else "unknown"}
        for seed, length, score in zip(data.seeds, lengths, data.scores, strict=True)
    ]
    sections = [
        f"# {plain(game.title)}, played by {plain(info.agent)}",
        "Games of the Arcade Learning Environment, a row a step of the agent.",
        markdown_table([{"": name, " ": value} for name, value in facts.items()]),
        "## Columns",
        markdown_table([{"column": name, "meaning": MEANINGS[name]} for name in FEATURES]),
        "## Actions",
        markdown_table([{"action": number, "words": words} for number, words in enumerate(info.action_names)]),
        "## Episodes",
        markdown_table(episodes[:MAX_EPISODES]),
        *([f"and {len(episodes) - MAX_EPISODES} more"] if len(episodes) > MAX_EPISODES else []),
        "## Use",
        f"`datasets` {datasets_version} and pvplay read this directory or its name on the hub:",
        code_block('from datasets import load_dataset\n\nrows = load_dataset("OWNER/NAME", split="train")', "python"),
        code_block("python -m agents.clone --data hf://OWNER/NAME --out runs/clone"),
        *(["Recorded by", code_block(info.command)] if info.command else []),
        "Exported by",
        code_block(command_line()),
        "Licence: " + (plain(license_id) if license_id else "none was named; ask its owner."),
    ]
    return DatasetCard(card_text(card_data(data, license_id).to_yaml(), sections))
