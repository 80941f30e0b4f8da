"""The functions that cut the tiles, in a package of the name that Tiled Diffusion's is known by."""

import torch


class BBox:
    def __init__(self, x, y, w, h):
        self.x, self.y, self.w, self.h = x, y, w, h
        self.slicer = slice(None), slice(None), slice(y, y + h), slice(x, x + w)


class Delegate:
    def __init__(self, p, side, count):
        self.w, self.h = p.width // 8, p.height // 8
        steps = lambda whole: sorted({*range(0, whole - side, side - 2), whole - side})  # noqa: E731
        boxes = [BBox(x, y, side, side) for y in steps(self.h) for x in steps(self.w)]
        self.batched_bboxes = [boxes[i : i + count] for i in range(0, len(boxes), count)]

    def forward(self, x_in, sigma_in, cond):
        def repeat_func(x_tile, bboxes):
            many = {key: self.repeat(value, len(bboxes)) for key, value in cond.items()}
            return self.original(x_tile, sigma_in.repeat(len(bboxes)), cond=many)

        return self.sample_one_step(x_in, repeat_func)

    def repeat(self, value, n):
        if isinstance(value, list):
            return [self.repeat(item, n) for item in value]
        return value.repeat(n, *[1] * (value.dim() - 1))

    def sample_one_step(self, x_in, repeat_func):
        total, weights = torch.zeros_like(x_in), torch.zeros_like(x_in)
        for bboxes in self.batched_bboxes:
            x_tile_out = repeat_func(torch.cat([x_in[bbox.slicer] for bbox in bboxes]), bboxes)
            for bbox, out in zip(bboxes, x_tile_out.chunk(len(bboxes)), strict=True):
                total[bbox.slicer] += out
                weights[bbox.slicer] += 1
        return total / weights

    def apply_model(self, x_in, t_in, cond):
        total, weights = torch.zeros_like(x_in), torch.zeros_like(x_in)
        for bboxes in self.batched_bboxes:
            tiles = []
            for bbox in bboxes:
                tiles.append(x_in[bbox.slicer])
            many = {key: self.repeat(value, len(bboxes)) for key, value in cond.items()}
            x_tile_out = self.original(torch.cat(tiles), t_in.repeat(len(bboxes)), many)
            for bbox, out in zip(bboxes, x_tile_out.chunk(len(bboxes)), strict=True):
                total[bbox.slicer] += out
                weights[bbox.slicer] += 1
        return total / weights

    def strided(self, x_in, sigma, cond):
        def repeat_func(x_tile, bboxes):
            return self.original(x_tile, sigma, cond=cond)

        bboxes, out = [(0, 0)], torch.zeros_like(x_in)
        out[:, :, ::2, ::2] = repeat_func(x_in[:, :, ::2, ::2], bboxes)
        return out
