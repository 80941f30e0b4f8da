"""A pytest plugin of the suite "current": torchvision beside a torch without CUDA.

PyPI's torchvision is built for CUDA, and its operators cannot be loaded beside a CPU torch. Its import then fails on
the two that it describes to torch without asking whether they are there. Declared here, they are; open_clip only uses
torchvision's transforms.
"""

import torch

if torch.version.cuda is None:
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
