"""Kills: a command dies before each of its file events and at random moments, and is repeated to the end.

Its files must then be those of an unbroken run: none torn, lost, doubled or different, and no repeat that is refused.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.faults.outputs import contents, differences, leftovers, torn_files
from experiments.faults.processes import Ended, Kill, run_in_child
from experiments.faults.tiny_commands import TinyCommand

FAULTS = ("torn", "stuck", "lost", "doubled", "different", "left")
MAX_EXAMPLES = 5
MAX_SECONDS = 600.0  # of a repeated command, which else counts as stuck


@dataclass(frozen=True)
class Outcome:
    """What one kill led to: the paths of each fault, none where all is well."""

    kill: Kill
    was_killed: bool
    faults: dict[str, list[str]]


def kill_and_repeat(command: TinyCommand, directory: Path, whole: dict[str, Any], kill: Kill) -> Outcome:
    """Run a command in an empty directory, kill it, repeat it to its end and compare."""
    shutil.rmtree(directory, ignore_errors=True)
    killed = run_in_child(command.run, directory, kill)
    faults: dict[str, list[str]] = {"torn": torn_files(directory)}
    ended = run_in_child(command.run, directory, Kill(seconds=MAX_SECONDS))
    faults["stuck"] = [last_line(ended)] if ended.code else []
    faults |= differences(whole, contents(directory, command.is_exact))
    faults["left"] = leftovers(directory)
    return Outcome(kill, killed.code == -9, faults)


def last_line(ended: Ended) -> str:
    """Return the end of what a child printed."""
    lines = ended.log.strip().splitlines() or [""]
    return f"exit {ended.code}: {lines[-1]}"


def plan_kills(unbroken: Ended, every: int, moments: int, seed: int) -> Iterator[Kill]:
    """Yield a kill before every n-th file event of a run, then some at random moments."""
    for event in range(1, unbroken.events + 1, every):
        yield Kill(event=event)
    for fraction in np.random.default_rng(seed).random(moments):
        yield Kill(seconds=float(fraction * unbroken.seconds))


def measure(
    command: TinyCommand, work: Path, every: int = 1, moments: int = 0, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield the row of a command: its file events, the kills, and how often each fault came, with examples."""
    directory = work / command.name
    shutil.rmtree(directory, ignore_errors=True)
    unbroken = run_in_child(command.run, directory)
    if unbroken.code:
        raise RuntimeError(f"{command.name}, unbroken: {last_line(unbroken)}")
    whole = contents(directory, command.is_exact)
    kills = plan_kills(unbroken, every, moments, seed)
    outcomes = [kill_and_repeat(command, directory, whole, kill) for kill in kills]
    row: dict[str, Any] = {"fault": "kill", "command": command.name, "file_events": unbroken.events}
    row |= {"kills": sum(one.was_killed for one in outcomes), "files": len(whole)}
    row |= {fault: sum(bool(one.faults[fault]) for one in outcomes) for fault in FAULTS}
    yield row | {"examples": list(examples(outcomes))[:MAX_EXAMPLES]}


def examples(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a line for each fault."""
    for one in outcomes:
        when = f"event {one.kill.event}" if one.kill.event else f"{one.kill.seconds:.2f} s"
        for fault, paths in one.faults.items():
            if paths:
                yield f"{when}: {fault}: {', '.join(paths[:3])}"
