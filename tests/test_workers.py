"""Workers: every part is worked on once, in the order asked for, and an error comes out."""

import threading

import pytest
import torch

from oppu.model.workers import workers_for


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_cores")
def test_results_come_in_the_order_of_the_parts():
    with workers_for(torch.device("cpu")) as workers:
        assert workers.count == 3
        assert workers.map(lambda n: n * n, list(range(20))) == [n * n for n in range(20)]


@pytest.mark.usefixtures("three_cores")
def test_parts_run_side_by_side_on_one_core_each():
    meeting = threading.Barrier(3, timeout=20)  # passes only if three are under way at once

    def meet(_: int) -> int:
        meeting.wait()
        return torch.get_num_threads()

    with workers_for(torch.device("cpu")) as workers:
        assert workers.map(meet, [0, 1, 2]) == [1, 1, 1]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_cores")
def test_a_single_part_keeps_all_cores_and_the_callers_thread():
    with workers_for(torch.device("cpu")) as workers:
        found = workers.map(lambda _: (threading.current_thread(), torch.get_num_threads()), [0])
    assert found == [(threading.current_thread(), 3)]


@pytest.mark.usefixtures("three_cores")
def test_an_error_in_a_worker_is_raised_to_the_caller():
    def fail(n: int) -> int:
        if n == 2:
            raise ValueError("part 2")
        return n

    with workers_for(torch.device("cpu")) as workers, pytest.raises(ValueError, match="part 2"):
        workers.map(fail, [0, 1, 2, 3])


def test_an_accelerator_has_one_worker():
    with workers_for(torch.device("meta")) as workers:
        assert workers.count == 1
