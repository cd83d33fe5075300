"""Where blocks of clients run: in this process, or on Ray actors with the same results.

Open to other packages:

- `worker_pool`: the interface, the in-process pool, and `open_pool`
- `ray_start`: starts or joins Ray
- `worker`: what runs in an actor's process
- `worker_groups`: kinds of workers and the capacity for them
- `gpu_sharing`: shares of GPUs, and calls that ran out of memory
- `dispatch`: which call goes to which worker

Used inside only:

- `ray_pool`: creates Ray actors and replaces lost ones
- `call_scheduler`: supervises actors: their calls, deaths and retries
- `call_timeout`: when a call counts as hung

Imports `basics`, `settings`, `axes`, `models`, `subnetworks`, `clients`.

Start reading at `worker_pool`.
"""

__all__ = ["dispatch", "gpu_sharing", "ray_start", "worker", "worker_groups", "worker_pool"]
