"""Identity in ``evaluate``: the cosine of faces, and how often one is found."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lib_ipadapter.errors import ConfigError, FaceModelMissing
from lib_ipadapter.evaluation.identity import Identity, Likeness, people_of
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


def by_colour(picture):
    """A recogniser: the mean colour is the person; a black picture has no face."""
    mean = np.asarray(picture, float).mean((0, 1))
    return mean if mean.any() else None


def plain(*colour):
    return Image.new("RGB", (4, 4), colour)


def test_persons_are_looked_for_among_all():
    red, green, blue = plain(200, 20, 20), plain(20, 200, 20), plain(20, 20, 200)
    references = [item(red, "r"), item(green, "g"), item(blue, "b"), item(plain(0, 0, 0), "nobody")]
    likeness = Likeness(by_colour, references)
    assert set(likeness.measures()) == {"identity", "face_found", "identity_top_1", "identity_rank"}
    nearly_green = plain(90, 200, 0)
    ranks = [likeness.rank(nearly_green, references[i]) for i in range(4)]
    assert ranks[:3] == [2, 1, 3]
    assert math.isnan(ranks[3])
    assert [likeness.first(nearly_green, references[i]) for i in range(3)] == [0, 1, 0]
    assert math.isnan(likeness.first(nearly_green, references[3]))


def test_a_picture_without_a_face_finds_nobody():
    references = [item(plain(9, 0, 0), "r"), item(plain(0, 9, 0), "g")]
    likeness = Likeness(by_colour, references)
    black = plain(0, 0, 0)
    assert likeness.first(black, references[0]) == 0
    assert math.isnan(likeness.rank(black, references[0]))
    assert set(Likeness(by_colour, references[:1]).measures()) == {"identity", "face_found"}


def test_other_pictures_of_the_same_people():
    references = [item(plain(200, 20, 20), "r"), item(plain(20, 200, 20), "g")]
    swapped = [item(references[1].load(), "r"), item(references[0].load(), "g"), item(plain(1, 1, 1), "stranger")]
    people = people_of(references, swapped)
    assert [one.key for one in people] == ["r", "g"]
    likeness = Likeness(by_colour, people)
    assert likeness.cosine(references[0].load(), references[0]) == pytest.approx(1)
    assert (likeness.rank(references[0].load(), references[0]), likeness.rank(swapped[0].load(), references[0])) == (
        2,
        1,
    )
    assert people_of(references, None) is references
    with pytest.raises(ConfigError, match="1 are missing: g"):
        people_of(references, swapped[:1])
