"""How PuLID is added to a picture: its authors' presets, and what a unit says instead."""

from __future__ import annotations

MODES = ("off", "ortho", "ortho_v2")
# ToTheBeginning/PuLID, app.py and app_v1_1.py: mode, and tokens of zeros. All of them at a weight of 0.8
PRESETS = {"fidelity": ("ortho_v2", 8), "style": ("ortho", 16), "v1.1": ("ortho_v2", 20)}
AUTO = "auto"
MOST_ZEROS = 80


def resolved(preset: str, mode: str, zeros: float, default: str) -> tuple[str, int]:
    """(one of MODES, tokens of zeros). preset: one of PRESETS, or AUTO for the preset ``default``; mode: one of MODES,
    zeros: from 0, or AUTO and -1 for the preset's."""
    its_mode, its_zeros = PRESETS[default if preset == AUTO else preset]
    return its_mode if mode == AUTO else mode, its_zeros if zeros < 0 else int(zeros)
