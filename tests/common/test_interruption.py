"""Ctrl-C and SIGTERM end a command the same way, at once or after the step that saves."""

import os
import signal

import pytest

from common.command import run
from common.interruption import Interrupted, deferred_interruption, interruptible

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
GO_ON = "interrupted; what was finished is kept: repeat the command to go on"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_command_with_its_exit_code_and_says_how_to_go_on(number, code, capsys):
    before = [signal.getsignal(one) for one, _ in SIGNALS]
    assert run(lambda: os.kill(os.getpid(), number)) == code
    assert capsys.readouterr().err == f"{GO_ON}\n"
    assert [signal.getsignal(one) for one, _ in SIGNALS] == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_training_saves_before_a_signal_ends_it(number, code, capfd):
    done = []

    def train():
        with deferred_interruption() as is_asked:
            assert not is_asked()
            os.kill(os.getpid(), number)
            done.append("saved" if is_asked() else "not asked")
        done.append("never reached")

    assert run(train) == code
    assert done == ["saved"]
    assert "finishing this step and saving" in capfd.readouterr().err


def test_a_second_signal_ends_a_training_at_once():
    def train():
        with deferred_interruption():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("not reached")

    with interruptible(), pytest.raises(Interrupted, match="SIGTERM"):
        train()
    with deferred_interruption() as is_asked:
        assert not is_asked()


def test_a_forked_worker_leaves_ctrl_c_to_its_parent_and_ends_at_sigterm():
    with interruptible():
        if not (worker := os.fork()):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 143
