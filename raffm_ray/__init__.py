"""raffm_ray: federated fine-tuning of one foundation model on devices that are not alike, simulated on Ray."""

__version__ = "0.1.0"
