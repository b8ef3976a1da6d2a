"""Batches of a fixed size, and of one that is found by trying."""

import pytest
import torch

from htgrpo_ext.core.batches import AUTO, BatchSize

CPU, OTHER = torch.device("cpu"), torch.device("meta")


def memory_for(rows, asked):
    """Work that runs out of memory with more rows; it notes what it was asked for."""

    def work(part):
        asked.append(part.stop - part.start)
        if asked[-1] > rows:
            raise torch.OutOfMemoryError("out of memory")
        return part

    return work


def test_all_rows_come_once_and_in_order():
    parts = BatchSize(4).batches(10, CPU, lambda part: part)
    assert parts == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert BatchSize(4).batches(0, CPU, lambda part: part) == []
    even = BatchSize(64).batches(10, CPU, lambda part: part, most=4)
    assert even == [slice(0, 4), slice(4, 7), slice(7, 10)]


def test_auto_halves_until_it_fits_and_remembers():
    size, asked = BatchSize("auto"), []
    parts = size.batches(100, OTHER, memory_for(20, asked))
    assert asked == [64, 32, *[16] * 6, 4]
    assert [n for part in parts for n in range(100)[part]] == list(range(100))
    asked.clear()
    size.batches(20, OTHER, memory_for(20, asked))
    assert asked == [16, 4]


def test_one_row_that_does_not_fit_is_an_error_and_so_is_a_fixed_size():
    asked = []
    with pytest.raises(torch.OutOfMemoryError):
        BatchSize("auto").batches(3, OTHER, memory_for(0, asked))
    assert asked == [3, 1]
    with pytest.raises(torch.OutOfMemoryError):
        BatchSize(8).batches(8, OTHER, memory_for(4, []))


def test_auto_is_one_number_on_a_cpu():
    assert BatchSize("auto").on(CPU) == AUTO["cpu"]


def test_a_backward_that_does_not_fit_is_done_again_in_halves_of_the_largest_batch():
    size, asked, undone = BatchSize("auto"), [], []

    def work():
        asked.append([part.stop - part.start for part in size.batches(12, OTHER, lambda part: part, most=6)])
        if max(asked[-1]) > 2:
            raise torch.OutOfMemoryError("out of memory, in a backward")
        return len(asked)

    assert size.retried(work, lambda: undone.append(len(asked))) == 3
    assert asked == [[6, 6], [3, 3, 3, 3], [1] * 12] and undone == [1, 2] and size.on(OTHER) == 1
    with pytest.raises(torch.OutOfMemoryError):
        size.retried(lambda: size.batches(2, OTHER, memory_for(0, [])), lambda: None)


def test_a_fixed_size_is_not_tried_again_after_a_backward():
    size, undone = BatchSize(4), []
    with pytest.raises(torch.OutOfMemoryError):
        size.retried(lambda: size.batches(8, OTHER, memory_for(0, [])), lambda: undone.append(1))
    assert undone == []
