"""What the panel shows of a model's file: its kind, its base, and whether what it needs is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..adapters.variant import VariantSpec
from ..controlnet.files import AUTO, ControlNets
from ..encoders.source import EncoderSource
from ..encoders.spec import ENCODERS, Need
from ..errors import EncoderError, FaceError, FaceModelMissing, IPAdapterError
from ..faces import FaceAnalyser, parsing
from ..faces.fetch import source_of
from ..faces.packs import RECOGNISERS
from ..files.download import hub_url, size_text
from .log import logger

if TYPE_CHECKING:
    from .hosts.base import Host

PARSING = "face parsing"
POSE_FIELDS = ("pose", "pose_from", "pose_face", "pose_weight", "pose_start", "pose_end", "control_model")
FACE_FIELDS = ("face", "shortcut", "lora", "kind", "pulid", "pulid_mode", "zero_tokens", *POSE_FIELDS)  # of the panel


def description_of(spec: VariantSpec, encoder: str, source: EncoderSource, faces: FaceAnalyser) -> dict[str, Any]:
    """encoder: the name of the CLIP encoder that it takes, "" if it takes none or an unknown one.
    ``face_models``: the recogniser's pack, "" for none; ``parsing``: what is missing for faces without background, ""
    for nothing, None where they are not needed; ``download``: what can be downloaded, "" if nothing is
    missing; ``download_from``: its size, as far as it is known, and its source; ``pages``: of what is missing
    (encoder, face_models, parsing), the page where it can be had; ``fields``: which of FACE_FIELDS the kind has."""
    clip = next((need for need in spec.needs if not need.is_face), None)
    found, note, error = _encoder(clip, encoder, source)
    pack, missing, other, fetched = _faces(spec, faces)
    unparsed = _parsing(spec, faces)
    parts = [spec.label, spec.base, f"{spec.tokens} tokens"]
    if clip is not None:
        parts.append(f"encoder {encoder or 'not known'}: {'found' if found else 'missing'}")
    if pack:
        parts.append(f"face models {pack}: {'missing' if missing else 'found'}")
    if unparsed is not None:
        parts.append(f"face parsing: {'missing' if unparsed else 'found'}")
    download = "" if error else encoder if not found else pack if fetched else ""
    absent = {"encoder": not found and encoder, "face_models": fetched and pack, "parsing": unparsed and PARSING}
    return {
        "title": spec.label, "base": spec.base, "encoder": encoder, "encoder_found": found, "error": error,
        "face_models": pack, "face_error": missing, "parsing": unparsed, "fields": _fields(spec),
        "download": download, "download_from": _source(download)[0],
        "pages": {part: page for part, name in absent.items() if name and (page := _source(name)[1])},
        "text": " · ".join([*parts, *filter(None, (note, other))]),
    }  # fmt: skip


def _source(name: str) -> tuple[str, str]:
    """(Size and repository, the page) of a download, "" for what is not known."""
    if name == PARSING:
        return "", parsing.SOURCE
    if name in RECOGNISERS:
        repo, file, bytes_ = source_of(name)
        return f"{size_text(bytes_)}, huggingface.co/{repo}", hub_url(repo, file, view="blob")
    hint = ENCODERS[name].pretrained_hint if name in ENCODERS else None
    if hint is None:
        return "", ""
    size = f"{size_text(hint.size)}, " if hint.size else ""
    return f"{size}huggingface.co/{hint.repo}", hub_url(hint.repo, hint.file, view="blob")


def control_of(spec: VariantSpec, controls: ControlNets) -> dict[str, str]:
    """``control``: the ControlNet that would be taken, "" for a kind that has none or where it is missing;
    ``control_error``: what is missing then."""
    if not spec.posed:
        return {"control": "", "control_error": ""}
    try:
        return {"control": controls.find(AUTO, spec.context).name, "control_error": ""}
    except (IPAdapterError, OSError) as error:
        return {"control": "", "control_error": str(error)}


def _encoder(need: Need | None, name: str, source: EncoderSource) -> tuple[bool, str, str | None]:
    """(found, a note, error)"""
    if need is None:
        return True, "", None
    try:
        return True, source.find(need).note, None
    except EncoderError as failure:
        return False, "", None if name else str(failure)


def _faces(spec: VariantSpec, faces: FaceAnalyser) -> tuple[str, str, str, bool]:
    """(pack, what is missing, a note on a recogniser that is not the published one, whether a download helps)"""
    if not spec.of_face:
        return "", "", "", False
    pack = spec.needs[0].encoder
    try:
        faces.check(pack)
        return pack, "", unpublished(spec, faces), False
    except FaceError as error:
        return pack, str(error), "", isinstance(error, FaceModelMissing)


def unpublished(spec: VariantSpec, faces: FaceAnalyser) -> str:
    """A remark on a recogniser that is not the published one, by which another person may come out; "" for none. Raises
    FaceModelMissing."""
    pack = spec.needs[0].encoder
    file = faces.packs.find(pack)
    return "" if file.exact else f"{file.label} is not {pack}'s published file, by its hash"


def say_unpublished(p: Any, host: Host, spec: VariantSpec, faces: FaceAnalyser) -> None:
    """``unpublished``, if it says anything, to those who see job ``p``: no error would."""
    doubt = unpublished(spec, faces) if spec.of_face else ""
    if doubt:
        text = f"{doubt}: with another recogniser it is another person"
        logger.warning("%s", text)
        host.comment(p, f"IP-Adapter: {text}")


def _parsing(spec: VariantSpec, faces: FaceAnalyser) -> str | None:
    """What is missing for faces without background; None for kinds that take none."""
    if all(need.of != "bare face" for need in spec.needs):
        return None
    try:
        faces.parser.check()
    except FaceError as error:
        return str(error)
    return ""


def _fields(spec: VariantSpec) -> list[str]:
    has = {
        "face": spec.of_face,
        "shortcut": "faceid-plusv2" in (spec.variant, *spec.kinds),
        "lora": spec.lora_rank > 0,
        "kind": len(spec.kinds) > 1,
        **dict.fromkeys(("pulid", "pulid_mode", "zero_tokens"), spec.corrected),
        **dict.fromkeys(POSE_FIELDS, spec.posed),
    }
    return [name for name in FACE_FIELDS if has[name]]
