"""Faces against insightface 2.1 and scikit-image, on the same ONNX files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.faces import Detector, Recogniser
from lib_ipadapter.faces.align import aligned_crop, similarity, template
from tests.face_models import detector, picture, recogniser

insightface = pytest.importorskip("insightface", reason="insightface is not installed")


@pytest.mark.parametrize("size", [(640, 640), (333, 512), (1024, 700)])
@pytest.mark.parametrize("sizes", [(640,), (128, 640)])
def test_detector(tmp_path, size, sizes):
    from insightface.model_zoo.scrfd import SCRFD

    path = tmp_path / "det.onnx"
    path.write_bytes(detector())
    peer = SCRFD(str(path))
    peer.prepare(-1, input_size=[(s, s) for s in sizes], det_thresh=0.5)
    noise = np.random.default_rng(0).integers(0, 90, (*size[::-1], 3), np.uint8)
    image = np.maximum(np.asarray(picture((150, 160), (250, 330), size=size)), noise)
    boxes, points = peer.detect(image[..., ::-1])
    found = Detector(detector(), "det").faces(image, sizes)
    assert len(found) == len(boxes) >= 2
    np.testing.assert_allclose([[*f.box, f.score] for f in found], boxes, atol=1e-4)
    np.testing.assert_allclose([f.points for f in found], points, atol=1e-4)


@pytest.mark.parametrize("normalises", [False, True])
def test_recogniser(tmp_path, normalises):
    from insightface.app.common import Face as PeerFace
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    path = tmp_path / "rec.onnx"
    path.write_bytes(recogniser(normalises=normalises))
    image = np.asarray(picture((320, 320), radius=120))
    (face,) = Detector(detector(), "det").faces(image)[:1]
    peer = ArcFaceONNX(str(path))
    theirs = peer.get(image[..., ::-1].copy(), PeerFace(kps=np.asarray(face.points, np.float32)))
    ours = Recogniser(recogniser(normalises=normalises), "rec").embedding(image, face)
    np.testing.assert_allclose(ours / np.abs(ours).max(), theirs / np.abs(theirs).max(), atol=1e-4)


@pytest.mark.parametrize("size", [112, 224, 256, 336])
def test_alignment(size):
    from insightface.utils import face_align
    from skimage.transform import SimilarityTransform

    rng = np.random.default_rng(size)
    for _ in range(20):
        points = template(112) * rng.uniform(0.5, 6) + rng.uniform(0, 300, 2) + rng.normal(0, 4, (5, 2))
        peer = SimilarityTransform()
        peer.estimate(points, template(size))
        ours = similarity(points, template(size))
        corners = np.array([[0.0, 0, 1], [1000, 0, 1], [0, 1000, 1]])
        np.testing.assert_allclose(corners @ ours.T, corners @ peer.params[:2].T, atol=1e-3)
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).resize((400, 400), Image.BICUBIC))
    points = (template(112) * 2.2 + 60 + rng.normal(0, 4, (5, 2))).astype(np.float32)
    theirs = face_align.norm_crop(image, points, size)
    assert np.abs(aligned_crop(image, points, size).astype(int) - theirs.astype(int)).max() <= 1
