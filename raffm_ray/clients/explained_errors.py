"""What is added to an error in a client's work, so that a user knows whose it is and what to do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raffm_ray.clients.messages import Job, RoundContext


@contextmanager
def explaining_kernels() -> Iterator[None]:
    """Says of an operation that has no deterministic kernel on a GPU what a user can do about it."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise RuntimeError(
            f"pool.deterministic: {operation} has no kernel on this GPU that gives the same bits every time: set pool.deterministic to false, "
            "or pool.device to cpu"
        ) from error


@contextmanager
def naming_clients(context: RoundContext, jobs: Sequence[Job]) -> Iterator[None]:
    """Adds to an error whose it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised in round {context.round} by client {', '.join(str(job.client) for job in jobs)}")
        raise
