import os
import signal

import pytest

from sm_jax.training.signals import Interrupted, Stop


def test_the_first_signal_asks_and_the_second_leaves():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal must interrupt")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_only_an_interruptible_stretch_is_broken_off():
    with Stop() as stop:
        with stop.interruptible():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted), stop.interruptible():
            raise AssertionError("a request that came before must end the stretch at once")
    with Stop() as stop:
        with pytest.raises(Interrupted), stop.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
