"""The keypoint picture of faces: the published pixels, and where a face stands in another picture."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("cv2", reason="cv2 is not installed")

from lib_ipadapter.faces.align import TEMPLATE
from lib_ipadapter.faces.keypoints import draw_keypoints
from lib_ipadapter.prompts.pose import Keypoints, placed

FACE = np.array(TEMPLATE, dtype=np.float64) / 112
# sha256 of what draw_kps of instantX-research/InstantID 0feb048 drew with cv2 4.10 for FACE, scaled and moved
PUBLISHED = [
    ((1024, 1024), 0.5, (0.25, 0.2), "421a851061171c38"),
    ((768, 1280), 0.9, (0.05, 0.3), "afca2c05ce53be14"),
    ((832, 600), 0.4, (-0.1, 0.5), "6c5c5b82a8fa066b"),
    ((64, 64), 1.0, (0.0, 0.0), "c95867bf37f33cb2"),
]


@pytest.mark.parametrize(("size", "scale", "offset", "digest"), PUBLISHED, ids=str)
def test_the_published_pixels(size, scale, offset, digest):
    points = ((FACE * scale + np.array(offset)) * np.array(size)).astype(np.float32)
    drawn = draw_keypoints(size, [points])
    assert drawn.shape == (size[1], size[0], 3)
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == digest
    # From fractions, at the size of the generated picture, as a job does it.
    hint = Keypoints(np.array([points.astype(np.float64) / np.array(size)]))
    assert np.array_equal(hint.at((size[1], size[0])), drawn)


def test_a_picture_of_many_pixels_takes_three_bytes_for_each():
    """The API draws in the picture's own size, which may be 100 megapixels."""
    tracemalloc.start()
    try:
        draw_keypoints((4000, 2500), [FACE * 2000])
        assert tracemalloc.get_traced_memory()[1] < 4 * 4000 * 2500
    finally:
        tracemalloc.stop()


def test_several_people_are_drawn_side_by_side():
    left, right = (FACE * 0.3 + np.array([x, 0.3]) for x in (0.05, 0.6))
    hint = Keypoints(np.array([left, right]))
    alone = [Keypoints(np.array([one])).at((512, 512)) for one in (left, right)]
    assert np.array_equal(hint.at((512, 512)), alone[0] + alone[1])


def test_a_part_of_the_picture_is_drawn_in_the_part_s_own_size():
    """What is inpainted alone: the points are where they were, the dots as large as in any picture."""
    hint = Keypoints(np.array([FACE * 0.4 + np.array([0.5, 0.5])]))
    part = hint.at((512, 512), (0.5, 0.5, 1.0, 1.0))
    assert np.array_equal(part, Keypoints(np.array([FACE * 0.8])).at((512, 512)))
    assert not hint.at((512, 512), (0.0, 0.0, 0.3, 0.3)).any()


def in_pixels(points, size):
    return placed(points[None], size, (512, 512))[0] * 512


def test_a_picture_of_the_same_shape_keeps_its_places():
    assert np.allclose(in_pixels(FACE * 1000, (1000, 1000)), FACE * 512)


def test_a_long_picture_covers_and_is_moved_for_a_face_at_its_edge():
    middle = FACE * 200 + np.array([400, 150])
    assert np.allclose(in_pixels(middle, (1000, 500)), (middle - np.array([250, 0])) * 512 / 500)
    edge = FACE * 200 + np.array([0, 150])
    moved = in_pixels(edge, (1000, 500))
    assert moved.min() >= 10 - 1e-6
    assert np.allclose(np.ptp(moved, axis=0), np.ptp(edge, axis=0) * 512 / 500)


def test_people_too_far_apart_are_fitted_inside():
    people = np.array([FACE * 200 + np.array([x, 150]) for x in (10, 790)])
    points = placed(people, (1000, 500), (512, 512)) * 512
    assert np.allclose(points, people * 512 / 1000 + np.array([0, 128]))
    assert points.min() > 0
    assert points.max() < 512
