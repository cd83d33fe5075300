"""Rounds on a GPU, several workers on it, beside a plain loop that has the same GPU for itself."""

from dataclasses import dataclass

import torch

from raffm_ray.benchmarks.measurement import Bench, Row
from raffm_ray.benchmarks.synthetic_data import vit
from raffm_ray.benchmarks.training import Workload, beside_plain
from raffm_ray.benchmarks.warm_processes import WarmProcesses
from raffm_ray.preparation.prepare import Prepared

BERT_BASE = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
"""BERT-base (Devlin et al. 2019): 110M parameters."""
VIT_BASE = {**vit(768, 12, 12, image=224, channels=3), "patch_size": 16}
"""ViT-B/16 (Dosovitskiy et al. 2021): 86M parameters."""


@dataclass(frozen=True)
class OnGPU(Workload):
    """A workload in bfloat16 on GPUs, with as many workers as fit."""

    device: str = "cuda"

    def prepared(self) -> Prepared:
        """See `Workload.prepared`."""
        share = "auto" if self.device == "cuda" else 0
        return self.experiment({"precision": "bfloat16"}, pool={"gpus_per_worker": share})


WORKLOADS = {
    "BERT-base": OnGPU(BERT_BASE, "texts", 10, 10, 4, 1, 1.0),
    "ViT-B/16": OnGPU(VIT_BASE, "photographs", 10, 10, 4, 1, 1.0),
}
"""Ours is to take no longer than the plain loop, which leaves a GPU idle between its operations."""


def why_no_gpu() -> str | None:
    """Why the case cannot run here."""
    return None if torch.cuda.is_available() else "no GPU here"


def gpu(bench: Bench) -> list[Row]:
    """A row a workload; the limit is one process."""
    rows = []
    for name, workload in WORKLOADS.items():
        processes = WarmProcesses(1)
        try:
            chosen = workload.shortened() if bench.quick else workload
            rows.append(
                beside_plain(
                    bench=bench,
                    workload=chosen,
                    what=f"{name}, a client",
                    processes=processes,
                    workers=None,
                    device=chosen.device,
                )
            )
        finally:
            processes.close()
    return rows
