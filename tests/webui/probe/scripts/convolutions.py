"""Convolutions by torch's own code: oneDNN's cost more to begin than the small checkpoints' need in all."""

import torch

torch.backends.mkldnn.enabled = False
