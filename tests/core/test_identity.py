"""Identity in ``evaluate``: the cosine of faces, and how often one is found."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from lib_ipadapter.errors import FaceModelMissing
from lib_ipadapter.evaluation.identity import Identity
from lib_ipadapter.evaluation.scores import References, Scores
from lib_ipadapter.faces import FaceAnalyser, FacePacks
from tests.core.test_face_prompts import NONE, ONE, TWO
from tests.face_models import write_pack

OTHER = TWO.copy()
OTHER.paste((0, 0, 120), (150, 180, 210, 240))  # without its first face, which is ONE's


@pytest.fixture
def identity(tmp_path) -> Identity:
    write_pack(tmp_path, "buffalo_l", seed=1)
    return Identity(FaceAnalyser(FacePacks(lambda: [tmp_path])), "buffalo_l")


def item(picture, key="a"):
    return SimpleNamespace(key=key, load=lambda: picture)


def test_the_cosine_is_that_of_the_faces(identity, tmp_path):
    assert identity.cosine(ONE, item(ONE)) == pytest.approx(1)
    other = identity.cosine(OTHER, item(ONE))
    analyser = identity._faces
    vectors = [
        analyser.embedding(image, max(analyser.faces(image), key=lambda face: face.area), "buffalo_l").astype(float)
        for image in (ONE, OTHER)
    ]
    assert other == pytest.approx(vectors[0] @ vectors[1] / np.prod([np.linalg.norm(v) for v in vectors]), abs=1e-6)
    assert other < 0.999


def test_without_a_face_there_is_no_identity_and_the_rate_says_so(identity):
    assert math.isnan(identity.cosine(NONE, item(ONE)))
    assert math.isnan(identity.cosine(ONE, item(NONE, "b")))
    assert (identity.found(NONE, item(ONE)), identity.found(TWO, item(NONE))) == (0.0, 1.0)


def test_a_picture_is_analysed_once_for_both_measures(identity):
    for _ in range(2):
        identity.cosine(ONE, item(TWO))
        identity.found(ONE, item(TWO))
    assert identity._faces.runs == 2


def test_missing_models_stop_it_at_once(tmp_path):
    with pytest.raises(FaceModelMissing):
        Identity(FaceAnalyser(FacePacks(lambda: [tmp_path])), "antelopev2")


def test_it_is_a_measure_of_the_table(identity):
    """The rate is a rate; pictures without a face do not count in the mean of who it is."""
    import torch

    class Metric:
        def images(self, pictures):
            return torch.eye(4)[: len(pictures)]

        def texts(self, texts):
            return torch.eye(4)[: len(texts)]

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def update(self, count):
            pass

    items = [item(ONE, "a"), item(TWO, "b")]
    references = References.look_at(items, ["x", "y"], Metric(), identity.measures(), lambda total, name: Bar())
    assert references.measured["face_found"].estimate().mean == 1.0
    scores = Scores(items, references, Metric(), identity.measures())
    scores.add("m", 1.0, [0, 0, 1], [ONE, NONE, TWO], [1, 2, 3])
    values = scores.values()
    assert values["face_found"].each == [0.5, 1.0]
    assert values["identity"].each == pytest.approx([1.0, 1.0])
