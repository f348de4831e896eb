"""The first signal is a request, the second one ends the process; then all is as before."""

import signal
import threading
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from fmerge.system import signals
from fmerge.system.signals import catch_signals


class Connector:
    def register_signal_handlers(self):
        raise AssertionError("Lightning's handlers would end the pass")


def trainer(environment=None, launcher=None, rank=0):
    return SimpleNamespace(
        _signal_connector=Connector(),
        _accelerator_connector=SimpleNamespace(
            cluster_environment=environment or LightningEnvironment()
        ),
        is_global_zero=rank == 0,
        global_rank=rank,
        world_size=1,
        strategy=SimpleNamespace(launcher=launcher),
    )


@pytest.fixture(autouse=True)
def unchanged():
    """Every test leaves the handlers that it found."""
    caught = (*signals.SIGNALS, signal.SIGUSR1)
    before = [signal.getsignal(one) for one in caught]
    yield
    assert [signal.getsignal(one) for one in caught] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(capfd, number):
    one = trainer()
    with catch_signals(one, "batch") as stop:
        one._signal_connector.register_signal_handlers()  # does nothing inside the block
        assert stop() == 0
        signal.raise_signal(number)
        assert stop() == stop() == number
    assert "stopping after this batch; once more to stop now" in capfd.readouterr().err
    with pytest.raises(AssertionError):
        one._signal_connector.register_signal_handlers()


def test_only_the_first_process_prints(capfd):
    with catch_signals(trainer(rank=1)) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop() == signal.SIGINT
    assert capfd.readouterr().err == ""


def test_the_second_signal_ends_this_process_and_those_it_started():
    killed = []
    launcher = SimpleNamespace(kill=killed.append)
    with pytest.raises(SystemExit) as end, catch_signals(trainer(launcher=launcher)):
        signal.raise_signal(signal.SIGINT)
        assert not killed
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM and killed == [signal.SIGKILL]


def test_slurms_signal_may_come_twice(capfd):
    slurm = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    with catch_signals(trainer(slurm)) as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert stop() == signal.SIGUSR1
    with pytest.raises(SystemExit) as end, catch_signals(trainer(slurm)):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)  # the job is requeued all the same
    assert end.value.code == 128 + signal.SIGUSR1
    assert "could not be requeued (SLURM_JOB_ID is no number)" in capfd.readouterr().err


def test_processes_agree_or_each_decides_alone(monkeypatch):
    monkeypatch.setattr(signals, "gather", lambda trainer, own: [own, signal.SIGTERM])
    with catch_signals(trainer()) as stop:
        assert stop() == signal.SIGTERM
    with catch_signals(trainer(), together=False) as stop:
        assert stop() == 0


def test_outside_of_the_main_thread_nothing_is_caught():
    found = []

    def ask():
        with catch_signals(trainer()) as stop:
            found.extend([stop(), signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [0, before]
