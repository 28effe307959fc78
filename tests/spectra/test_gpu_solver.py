"""Eigenvalues of matrices that a GPU computed."""

import pytest
import torch

from hf_farms.spectra import gpu_solver
from hf_farms.spectra.esd import window_eigenvalues


@pytest.mark.parametrize("count", [1, 3, 17])
def test_gram_matrices_of_a_gpu_are_solved_in_parts_and_in_order(monkeypatch, count):
    monkeypatch.setattr(gpu_solver, "CPU_BYTES", 2 * 3 * 80 * 80 * 8)  # three matrices at once
    x = torch.randn((count, 80, 90), generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    gram = x @ x.mT
    parts, solve = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda part: parts.append(len(part)) or solve(part))
    found = gpu_solver.solve_copies(gram)
    torch.testing.assert_close(found, torch.stack([solve(matrix) for matrix in gram]))
    assert sum(parts) == count
    assert max(parts) <= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("k", [8, 100, gpu_solver.CORES_UP_TO, gpu_solver.CORES_UP_TO + 1])
def test_a_gpu_finds_the_eigenvalues_of_a_cpu(k):
    windows = torch.randn((5, k, 2 * k), generator=torch.Generator().manual_seed(k))
    found = window_eigenvalues(windows.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), window_eigenvalues(windows))


@pytest.mark.parametrize("room", [1, 3, 5, 16, 100])
@pytest.mark.parametrize("size", [1, 6, 40, 10**9])
def test_batches_are_halved_until_they_fit_and_stay_in_order(room, size):
    sizes = []

    def solve(items):
        sizes.append(len(items))
        if len(items) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.tensor(items)

    solved = gpu_solver.solve_halving(range(37), solve, size)
    assert torch.cat(solved).tolist() == list(range(37))
    # A size that did not fit is not tried again.
    assert len([tried for tried in sizes if tried > room]) == len({tried for tried in sizes if tried > room})


def test_one_matrix_that_does_not_fit_is_an_error():
    def solve(items):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        gpu_solver.solve_halving(range(5), solve, 4)


def test_batches_have_fewer_matrices_than_a_grid_of_cuda():
    sizes = []
    gpu_solver.solve_halving(range(70_000), lambda items: sizes.append(len(items)) or torch.zeros(len(items)), 10**9)
    assert sizes == [65_534, 4_466]


@pytest.mark.parametrize("batched", [True, False])
def test_a_serial_solver_is_found_by_its_time(batched, monkeypatch):
    now, solve = [0.0], torch.linalg.eigvalsh

    def slow(matrices):
        now[0] += 1 if batched else len(matrices)
        return solve(matrices)

    monkeypatch.setattr(torch.linalg, "eigvalsh", slow)
    monkeypatch.setattr(gpu_solver.time, "perf_counter", lambda: now[0])
    assert gpu_solver.is_batched(torch.device("cpu"), lambda: None) == batched


@pytest.mark.parametrize("batched", [True, False])
def test_small_matrices_go_to_the_cores_where_the_solver_is_serial(batched, monkeypatch):
    copied, solve = [], torch.linalg.eigvalsh
    monkeypatch.setattr(gpu_solver, "has_batched_solver", lambda device: batched)
    monkeypatch.setattr(gpu_solver.torch.cuda, "current_stream", lambda device: torch.Event("cpu"), raising=False)
    monkeypatch.setattr(gpu_solver, "solve_copies", lambda gram: copied.append(len(gram)) or solve(gram))
    for rows in (8, gpu_solver.CORES_UP_TO + 1):
        gram = torch.eye(rows).expand(2, rows, rows)
        assert torch.equal(gpu_solver.solve_from_gpu(gram), torch.ones(2, rows))
    assert copied == ([] if batched else [2])
