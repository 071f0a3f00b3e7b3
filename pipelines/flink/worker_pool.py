"""Starts Beam's Python workers where Flink's task managers ask for them: an external worker pool on one machine.

`python -m apache_beam.runners.worker.worker_pool_main` does the same, but listens on every interface; whoever reaches
a worker pool can have code run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Makes workers keep freed memory, as pipelines.memory does in a process of our own."""


def serve(host: str, port: int) -> None:
    """Starts workers for those who ask, each as a process of its own, until SIGTERM or SIGINT.

    Prints the address (one line) once it listens.

    Args:
      host: name or address to listen on.
      port: port to listen on; 0 for a free one.
    """
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2_grpc
    from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
    from apache_beam.utils import thread_pool_executor

    # Beam starts a worker by the name of "python".
    os.environ.update(MEMORY, PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    pool = BeamFnExternalWorkerPoolServicer(use_process=True)
    server = grpc.server(thread_pool_executor.shared_unbounded_instance())
    bound = server.add_insecure_port(f"{host}:{port}")
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(f"{host}:{bound}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop(None).wait()
    finally:
        for worker in list(pool._worker_processes.values()):
            worker.kill()
            worker.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the worker pool.

    Args:
      arguments: what follows the program's name; None takes it from the process.
    """
    parser = argparse.ArgumentParser(prog="python -m pipelines.flink.worker_pool", description=__doc__)
    parser.add_argument("--host", default="localhost", help="Where to listen (default: %(default)s, nobody else's).")
    parser.add_argument("--port", type=int, default=50_000, help="0 for a free one (default: %(default)s).")
    asked = parser.parse_args(arguments)
    serve(asked.host, asked.port)


if __name__ == "__main__":
    main()
