"""What the speed suite's cases are, and the settings of `raffm-ray bench extraction`, for their help: nothing heavy is imported."""

from typing import Any

CASES: dict[str, str] = {
    "noop-small": "500 clients of 10 kB that do nothing / bare Ray: one put, one sum a worker",
    "noop-large": "50 clients of 45 MB that do nothing / bare Ray",
    "digits": "ViT of 39 thousand parameters, 100 clients of 2 steps / a plain PyTorch loop",
    "cifar": "ViT of 2.7 million, 10 clients of 3 steps / a plain PyTorch loop",
    "sst2": "MiniLM of 22.7 million, 10 clients of 4 steps / a plain PyTorch loop",
    "subnet": "a training step's time and memory at 75, 50, 35% of the encoder / at 100%",
    "extract-aggregate": "bytes cut and added a second / copied",
    "scale": "registered clients, clients a round, workers: the most / the fewest",
    "start": "raffm-ray run to the end of round 1 / libraries and Ray alone",
    "gpu": "BERT-base and ViT-B/16 in bfloat16, 10 clients of 4 steps / a plain loop on the same GPU",
}
"""Ours and the limit beside it, of each case."""
DEFAULTS: dict[str, Any] = {
    "name": "extraction",
    "task": {"name": "sst2", "data": "$RAFFM_DATA/sst2", "max_length": 64, "public": 67000},
    "model": {
        "pretrained": "all-MiniLM-L6-v2",
        "pretrain": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-4, "weight_decay": 0.01, "warmup": 0.06},
    },
    "clients": {"count": 1, "per_round": 1, "partition": "iid"},
    "salience": {"source": "public", "rotation": "calibrated", "rotation_examples": 64},
    "extraction": {"steps": {"heads": 1, "qk": 4, "vo": 4, "ffn": 16}, "floors": {}},
    "evaluation": {"batch_size": 109},
}
"""MiniLM fine-tuned on 67,000 sentences of SST-2 for two epochs, once; flags change any of it."""
