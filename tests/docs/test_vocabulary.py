"""The field's terms only: private words of earlier versions stay out of code, flags, log keys and documents."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("agents", "common", "envs", "experiments", "pretrain", "vlm", "tests")

# term -> the field's term. A term matches whole words, also within snake_case and CamelCase names.
WORDS = {
    "teacher": "expert",
    "pupil": "learner policy",
    "whoever": "(rephrase)",
    "shall": "(rephrase)",
    "gaze": "attention supervision",
    "sights": "AttentionTargets",
    "foretold": "held-out expert negative log-likelihood",
    "foretell": "held-out expert negative log-likelihood",
    "marksman": "carnival-expert",
    "pathfinder": "mspacman-expert",
    "strangers": "held_out_games",
    "strange": "augmented, out-of-distribution",
    "unparsable": "invalid",
    "readout": "auxiliary action head",
    "softness": "target_temperature",
    "slips": "random actions",
    "stakes": "RewardShaping",
    "lanes": "parallel environments, num_envs",
    "lesson": "objective",
    "lessons": "objectives",
    "floors": "baselines",
    "wander": "RandomRollout",
    "triptych": "comparison_grid",
    "referral": "ReferringSample",
    "referrals": "ReferringSource",
    "person": "human",
    "rival": "baseline",
    "arms": "conditions",
}
# term -> the field's term. These match as substrings.
PHRASES = {
    "PixelLanguage": "PixelPromptFormat",
    "PointLanguage": "PointPromptFormat",
    "ChoiceScorer": "CandidateScorer",
    "CompiledScorer": "OpenVinoScorer",
    "ForeignVLM": "PretrainedVLM",
    "foreign-vlm": "pretrained-vlm",
    "mask_finder": "referring_segmenter",
    "MaskFinder": "ReferringSegmenter",
    "load_finder": "load_segmenter",
    "MaskAnswer": "MaskPrediction",
    "EncoderMaps": "multi-scale features",
    "taught_size": "training_resolution",
    "RestingNorm": "FixedStatsBatchNorm2d",
    "ThinnedConv": "StridedPointwiseConv2d",
    "TrainablePlan": "ModuleLearningRates",
    "moved_tensors": "parameter_update_report",
    "hard_share": "argmax weight",
    "hard share": "argmax weight",
    "of_teacher": "expert_normalized_score",
    "share_of_teachers": "expert_normalized_score",
    "place_heads": "positional_heads",
    "place heads": "positional heads",
    "codes.py": "sinusoidal_init.py",
    "start_codes": "sinusoidal_init",
    "start_numbers": "init_number_embeddings",
    "start_places": "init_position_embeddings",
    "cascade": "shared-prefix attention",
    "adopt_tower": "load_vision_tower",
    "look_closer": "dense_patch_embedding",
    "read_and_watch": "forward_packed_with_attention",
    "read_behind": "forward_with_cache",
    "ReadPrefix": "CachedPrefix",
    "AnswerTrie.sight": "ancestor_mask",
    "answer_questions": "generate_batch",
    "points_shift": "logit_bias",
    "fit_shift": "calibrate_logit_bias",
    "TaughtGame": "LabelledDataset",
    "TaughtAgent": "ExpertLabelledAgent",
    "SlippingAgent": "RandomActionAgent",
    "HoldingAgent": "ActionRepeatAgent",
    "ChooseByPlay": "CheckpointSelectionCallback",
    "label_ceiling": "expert self-agreement",
    "play_at_tables": "rollout_pipelined",
    "two tables": "two pipelined groups",
    "turn and turn about": "interleaved",
    "experience.Stretch": "RolloutBatch",
    "FrameMemory": "FrameStack",
    "AimSearch": "FireLookahead",
    "WanderSearch": "RandomRolloutSearch",
    "GallerySearch": "CarnivalExpert",
    "MazeSearch": "MsPacmanExpert",
    "BallSearch": "PaddleExpert",
    "planner_agent": "search_agent",
    "MixedLesson": "MixtureObjective",
    "plain_pickle": "safe_pickle",
    "mask_measures": "segmentation_metrics",
    "refer_eval": "pretrain.referring.evaluation",
    "refer_data": "pretrain.referring.dataset_report",
    "bench_decide": "decision_speed",
    "bench_pvp": "pvp_speed",
    "bench_refer": "segmentation_speed",
    "bench_rollout": "rollout_speed",
    "pretrain.pixels": "pretrain.pvp",
    "pretrain.captioning": "pretrain.captions",
    "pretrain.semantics": "pretrain.semantic_probe",
    "agents.ship": "agents.export",
    "agents.improve": "agents.dagger, agents.ppo",
    "experiments.policy": "agents.clone --pvp-weight",
    "teach_every": "label_every",
    "think_every": "action_repeat",
    "select_every": "eval_every",
    "hold_episodes": "val_episodes",
    "at the controls": "agent, policy",
    "by heart": "(rephrase)",
    "nothing is guessed": "(rephrase)",
    "one look at the": "one forward pass over the",
    "hand slips": "random actions",
    "open regime": "out-of-distribution",
    "familiar regime": "in-distribution",
}
# flags of commands; they match as whole flags
FLAGS = [
    *("absent", "finder", "gaze", "hold", "hold-episodes", "lanes", "mirror", "noise", "pixel-share", "ramp"),
    *("readout", "readout-first", "room", "select-every", "select-games", "shares", "show", "shuffled"),
    *("slips", "soft", "softness", "start-codes", "teach-every", "teacher", "teachers", "think-every", "tower"),
]

# Where old terms are needed, and why.
ALLOWED = {
    "CHANGELOG.md": "tells what old commands are called now",
    "tests/docs/test_vocabulary.py": "this list",
}


def _pattern():
    words = "|".join(sorted(WORDS, key=len, reverse=True))
    phrases = "|".join(re.escape(phrase) for phrase in PHRASES)
    flags = "|".join(FLAGS)
    return re.compile(
        rf"(?<![A-Za-z])(?P<word>(?i:{words})s?)(?![a-z])|(?P<phrase>{phrases})|(?<![\w-])--(?P<flag>{flags})(?![\w-])"
    )


PATTERN = _pattern()


def _old_name_lines(text):
    """Return the lines of tables whose name says that they hold old names, such as `OLD_AGENT_IDS = {...}`."""
    lines = set()
    for node in ast.walk(ast.parse(text)):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and "OLD" in target.id.split("_") for target in targets):
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


@cache
def files():
    """Return every file that a reader may open, less the log, whose terms are of their time, and result data."""
    code = [file for room in ROOMS for ending in ("py", "j2", "md") for file in (ROOT / room).rglob(f"*.{ending}")]
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs").glob("*.ipynb"),
        ROOT / "pyproject.toml",
    ]
    return sorted({file for file in code + pages if str(file.relative_to(ROOT)) not in ALLOWED})


def find_terms(file):
    """Return "line: term" of every private term in a file."""
    text = file.read_text()
    exempt = _old_name_lines(text) if file.suffix == ".py" else set()
    return [
        f"{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        if number not in exempt
        for match in PATTERN.finditer(line)
    ]


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_uses_the_terms_of_the_field(file):
    assert find_terms(file) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("the gaze of a head", ["1: gaze"]),
        ("gaze_loss = Sights()", ["1: gaze", "1: Sights"]),
        ("a loss that gazes", ["1: gazes"]),
        ("--hold 2 --val-episodes 2", ["1: --hold"]),
        ("OLD_KEYS = {'readout': 'head'}", []),
        ("stargazer, reshall, slipstream", []),
    ],
)
def test_terms_are_found_as_whole_words(line, found, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(line if line.startswith("OLD") else f"# {line}")
    assert find_terms(file) == found


def test_result_files_hold_the_terms_of_the_field():
    old = {"of_teacher", "agreed", "moved", "ours", "rival", "rival_is", "arm", "strange_top5", "unparsable", "floor"}
    for file in sorted((ROOT / "experiments" / "results").glob("*.json")):
        rows = json.loads(file.read_text())["rows"]
        assert not old & {key for row in rows for key in row}, file.name
