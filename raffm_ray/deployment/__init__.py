"""A trained model in the size that fits a device, with no further training.

Open to other packages:

- `deploy`: cuts, writes and measures a subnetwork
- `command`: `raffm-ray deploy`
- `options`: what can be asked of it
- `model_folder`: a folder that loads on its own
- `finished_run`: starts a run from Python; its records, report and model as one object
- `supernet`: one file of which every beginning is a subnetwork

Used inside only:

- `trained_model`: a finished run's model, or a plain checkpoint
- `exports`: ONNX, int8 and exported programs
- `inference`: metric and latency of a deployed model
- `latency_search`: the largest subnetwork that answers in time
- `model_card`: the model card
- `partial_safetensors`: reads the beginning of a safetensors file
- `adapter_folder`: adapters alone, as `peft` opens them
- `client_model`: the model of one client of a run
- `picture`: the picture of all sizes

Imports `basics`, `settings`, `axes`, `data`, `models`, `subnetworks`, `clients`, `server`, `preparation`, `runs`,
`reports`.

Start reading at `deploy`.
"""

__all__ = ["command", "deploy", "finished_run", "model_folder", "options", "supernet"]
