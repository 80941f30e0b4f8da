"""Texts of the tab that stand alone on the page, so that localizations/ can have them. Pure."""

from __future__ import annotations

STARTED = "Started. It runs by itself: this page and the WebUI may be closed."
STOPPING = "It saves and ends; press again to end it at once."
NO_ENCODER = "No image encoder is there: put one into models/clip_vision."
NO_JUDGE = (
    "No CLIP is there that can measure: put one with both towers into models/clip_vision, such as "
    "open_clip_pytorch_model.bin of huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K."
)

# labels that one part has and the other has not
TRAININGS, EVALUATIONS = "Trainings", "Evaluations"
NAME_OF_ADAPTER, NAME_OF_EVALUATION = "Name of the adapter", "Name of the evaluation"
SAVE_AND_STOP, STOP = "Save and stop", "Stop"

PHASES = {
    name: name
    for name in (
        "preparing", "training", "drawing", "measuring", "stopping", "done", "stopped", "failed", "killed",
    )
}  # fmt: skip

# of numbers
STEP, LOSS, VALIDATION, SPEED, LEFT, LISTED = (
    "Step", "Loss", "Validation loss", "Pictures a second", "Time left", "In the list of models as",
)  # fmt: skip
PICTURES, MEASURED, OPENED, SMALLEST, LARGEST = "Pictures", "Sizes read", "Opened", "Smallest", "Largest"
ENLARGED, REFERENCES = "Will be enlarged", "With a reference of their own"
UNCAPTIONED = "without a caption: put a .txt with one beside each"
BROKEN = "cannot be read and will be passed over:"
CUT = "What they are cut to"
LOSSES = "Loss over the steps; dashed: on the validation pictures."
METHOD, WEIGHT, DIFFERENCES, MINUS = "Method", "Weight", "Differences", "minus"
CURVES = "Over the weight, with 95 % intervals"
CLIPS = "CLIP-I: how like the reference. CLIP-T: how like the text. In brackets: 95 % confidence intervals."
TOPS = "top-1, top-5: how often its own reference is the closest, or among the five closest."
GRID = "Reference, then each method and weight"
FILES = "All pictures and tables are in:"

WORDS = (
    STARTED, STOPPING, NO_ENCODER, NO_JUDGE, *PHASES, STEP, LOSS, VALIDATION, SPEED, LEFT, LISTED, PICTURES, MEASURED,
    OPENED, SMALLEST, LARGEST, ENLARGED, REFERENCES, UNCAPTIONED, BROKEN, CUT, LOSSES, METHOD, WEIGHT, DIFFERENCES,
    MINUS, CURVES, CLIPS, TOPS, GRID, FILES, TRAININGS, EVALUATIONS, NAME_OF_ADAPTER, NAME_OF_EVALUATION, SAVE_AND_STOP,
    STOP,
)  # fmt: skip
