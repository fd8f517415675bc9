"""Runs a function in several processes, with the environment that torchrun gives them."""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch


def on_ranks(work: Callable[..., Any], ranks: int, *arguments: object, nodes: int = 1, limit_s: float = 120) -> list:
    """Call ``work(*arguments)`` on each rank and return the results in order of rank.

    Processes are forked from a server that has imported the libraries and run nothing: torch cannot train in a fork of
    a process that has trained with threads. Work and arguments are pickled. The ranks of a node are consecutive.

    Raises:
        AssertionError: A rank failed, or did not end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "ssl_asr.build.training", "tests.training.toy_runs"])
    threads = torch.get_num_threads()
    pipes, processes = [], []
    for rank in range(ranks):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(there, rank, ranks, nodes, port, threads, work, arguments))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        results = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(limit_s), f"rank {rank} did not end"
            good, result = pipe.recv()
            assert good, f"rank {rank}: {result}"
            results.append(result)
        return results
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def _run(pipe, rank, ranks, nodes, port, threads, work, arguments):
    torch.set_num_threads(threads)
    local = ranks // nodes
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % local),
        "GROUP_RANK": str(rank // local),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    try:
        pipe.send((True, work(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    # As torchrun's processes end: without the clean-up of the process that was forked.
    os._exit(0)
