"""Stands for the package ultralytics in front of ADetailer: a detector that finds the boxes its model's file lists, one
a line: left, top, right, bottom. Nothing else of ADetailer is replaced."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


class YOLO:
    def __init__(self, path):
        lines = Path(path).read_text().split()
        self.boxes = torch.tensor([[float(edge) for edge in line.split(",")] for line in lines]).reshape(-1, 4)

    def __call__(self, image, conf, device):
        found = SimpleNamespace(xyxy=self.boxes, conf=torch.full((len(self.boxes),), 0.9))
        return [SimpleNamespace(boxes=found, masks=None, plot=lambda: np.asarray(image)[..., ::-1].copy())]
