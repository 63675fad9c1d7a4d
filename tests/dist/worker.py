"""What the tests run: ``worker.py torch|mpi FILE SIZE ...``; the first process writes FILE.

``mpiexec`` starts the processes of MPI. Those of torch are forked once everything is imported.

Everything is computed by one process and by groups of each size; what is written is how they differ.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as torch_dist

sys.path.insert(0, str(Path(__file__).parent))
import models
from astrozoo._sharing import share
from astrozoo.density import elbo, log_density
from astrozoo.dist import MpiComm, TorchComm
from astrozoo.guides.auto import mean_field


def distance(a, b):
    """Largest absolute difference, relative to the largest number."""
    pairs = zip(a, b, strict=True) if isinstance(a, tuple) else ((a, b),)
    return max(float((x - y).abs().max() / (1 + y.abs().max())) for x, y in pairs)


def _evaluations(target, rows, seed=3):
    """Every kind of evaluation of a captured function."""
    random = torch.Generator().manual_seed(seed)
    b = target.batch or rows

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    w, v = 0.3 * normal(b, target.dim), normal(b, target.dim)
    noise = normal(4, target.noise_dim) if target.noise_dim else None
    found = {
        "values": target.values(w, noise),
        "value_and_grad": target.value_and_grad(w, noise),
        "hessian": target.value_grad_hessian(w, noise),
        "hvp": target.hvp(w, noise, v),
    }
    if hasattr(target, "log_ratio"):
        found["log_ratio"] = target.log_ratio(w, noise)
    return found


def _cases():
    """By name: a problem, what is divided, rows, and a capture."""
    density, guided = (
        (lambda p: log_density(p, compile="never")),
        (lambda p: elbo(p, mean_field, compile="never")),
    )
    line, lines, stars = models.line(), models.lines(), models.stars()
    return {
        "line, data, density": (line, "data", 2, density),
        "line, data, elbo": (line, "data", 2, guided),
        "two points, data, density": (models.line(2), "data", 2, density),
        "two points, data, elbo": (models.line(2), "data", 1, guided),
        "stars, data, density": (stars, "data", 1, density),
        "stars, data, elbo": (stars, "data", 1, guided),
        "line, chains, density": (line, "chains", 5, density),
        "line, chains of fewer rows, density": (line, "chains", 2, density),
        "lines, problems, density": (lines, "problems", None, density),
        "lines, problems, elbo": (lines, "problems", None, guided),
        "lines, data, elbo": (lines, "data", None, guided),
    }


def evaluations(comm, cases, expected):
    """How each kind of evaluation by all processes differs from that by one."""
    differences = {}
    for name, (problem, kind, rows, capture) in cases.items():
        for entry, got in _evaluations(capture(share(problem, comm, kind)), rows).items():
            differences[f"{name}, {entry}"] = distance(got, expected[name][entry])
    return differences


def operations(comm):
    r, n = comm.rank, comm.size
    x = torch.arange(3.0, dtype=torch.float64) + 10 * r
    parts = [torch.full((r, q), 1.0 * r) + 0.1 * q for q in range(n)]
    received = comm.all_to_all(parts, [(q, r) for q in range(n)])
    comm.barrier()
    return {
        "all_reduce": comm.all_reduce(x).tolist() == [n * k + 10 * sum(range(n)) for k in range(3)],
        "all_gather": comm.all_gather(x)[:, 0].tolist() == [10.0 * q for q in range(n)],
        "broadcast": comm.broadcast(x, n - 1).tolist() == [10.0 * (n - 1) + k for k in range(3)],
        "all_to_all": all(
            y.shape == (q, r) and bool((y == torch.full((q, r), 1.0 * q) + 0.1 * r).all())
            for q, y in enumerate(received)
        ),
        "counts": all(comm.counts[name] > 0 for name in comm.counts),
    }


def groups(kind, sizes):
    """By size, the communicators of the first processes that this process is in."""
    if kind == "torch":
        rank = torch_dist.get_rank()
        made = {n: torch_dist.new_group(list(range(n))) for n in sizes}
        return {n: TorchComm(group) for n, group in made.items() if rank < n}
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.Get_rank()
    made = {n: MPI.COMM_WORLD.Split(0 if rank < n else 1, rank) for n in sizes}
    return {n: MpiComm(group) for n, group in made.items() if rank < n}


def differences(comm, whole):
    cases, expected = whole
    return {"operations": operations(comm), "evaluations": evaluations(comm, cases, expected)}


def in_groups(kind, file, sizes, whole, differences):
    """Compute ``differences(comm, whole)`` in groups of each size; the first process writes them.

    ``whole`` is what one process has found. ``mpiexec`` started all processes of MPI; those of torch are
    forked here.
    """

    def run():
        found = {n: differences(comm, whole) for n, comm in groups(kind, sizes).items()}
        if rank == 0:
            Path(file).write_text(json.dumps(found))

    if kind == "mpi":
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.Get_rank()
        run()
        return
    processes = []
    for rank in range(max(sizes)):
        process = os.fork()
        if process == 0:
            torch_dist.init_process_group("gloo", f"file://{file}.store", rank=rank, world_size=max(sizes))
            run()
            torch_dist.barrier()
            os._exit(0)
        processes.append(process)
    if any(os.waitpid(process, 0)[1] for process in processes):
        sys.exit("a process failed")


def main(kind, file, *sizes):
    cases = _cases()
    expected = {name: _evaluations(capture(p), rows) for name, (p, _, rows, capture) in cases.items()}
    in_groups(kind, file, [int(n) for n in sizes], (cases, expected), differences)


if __name__ == "__main__":
    main(*sys.argv[1:])
