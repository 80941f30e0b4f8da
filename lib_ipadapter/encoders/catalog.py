"""Which encoders are in the user's folders, under whatever names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import BrokenEncoder, ConfigError, EncoderError, EncoderMissing
from .configs import forget_configs
from .files import SUFFIXES
from .listing import Listing, walk
from .named import hub, looks_named, named_spec
from .recognise import Recognised, forget, recognise
from .spec import ENCODERS, EncoderSpec, Need, for_feature

Folders = Sequence[Path] | Callable[[], Sequence[Path]]


class Catalog:
    """The encoders in these folders and below (files may stand there too). The first folder wins, in it safetensors
    before pickles. Folders are listed again only after a change in them, and a file is opened again only after a change
    of it or of its config. One broken file or config never hides another encoder."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders if callable(folders) else lambda: folders
        self._listings: dict[Path, Listing] = {}

    def refresh(self) -> None:
        """Lists the folders, and looks at their files, anew at the next use."""
        self._listings.clear()
        forget()
        forget_configs()
        named_spec.cache_clear()

    def find(self, name: str) -> Recognised:
        """The file of an encoder. Raises BrokenEncoder if it is there with a config that cannot be used,
        EncoderMissing, which names the folders, what is in them, and the download."""
        seen = []
        for entry in self._entries():
            if entry.spec is not None and entry.spec.name == name:
                return entry
            if entry.spec is None and entry.custom and entry.path.stem == name:
                raise BrokenEncoder(f"{entry.path.name}: {entry.problem}", value=name)
            seen.append(f"{entry.path.name} ({entry})")
        folders = [str(folder) for folder in self._folders()]
        raise EncoderMissing(self._missing(name, seen), encoder=name, folders=folders, seen=seen)

    def all(self) -> list[Recognised]:
        """What is in each weight file of the folders."""
        return list(self._entries())

    def spec(self, name: str) -> EncoderSpec:
        """A known encoder needs no file for it; a custom one does. Raises EncoderError."""
        known = ENCODERS.get(name)
        if known is not None:
            return known
        found = self.find(name).spec
        assert found is not None  # else find raises
        return found

    def name_of(self, need: Need) -> str:
        """The encoder that gives a feature: the one that the adapter names; where that one is not known, or none is
        named, the only custom one of that width (a renamed file). Raises EncoderMissing."""
        if need.encoder in ENCODERS or need.encoder in self._custom_stems():
            return need.encoder
        custom = {
            entry.spec.name
            for entry in self._custom()
            if entry.spec and entry.spec.gives(need.feature) and entry.spec.feature_width(need.feature) == need.width
        }
        if len(custom) > 1:
            raise EncoderMissing(
                f"the adapter takes {need}, and does not say of which encoder; {', '.join(sorted(custom))} give such "
                "features. Leave only the right one in the folders",
                value=need.encoder,
            )
        if custom:
            return custom.pop()
        registered = for_feature(need.feature, need.width)
        if registered is not None and not need.encoder:
            return registered.name
        raise EncoderMissing(self._unknown(need), value=need.encoder)

    def _unknown(self, need: Need) -> str:
        known = ", ".join([*ENCODERS, *sorted(self._custom_stems())])
        if not need.encoder:
            broken = [f"{entry.path.name}: {entry.problem}" for entry in self._custom() if entry.spec is None]
            also = f". One is there and cannot be used: {'; '.join(broken[:4])}" if broken else ""
            return (
                f"the adapter takes {need}, which no known image encoder gives; known are {known}. Put the weights of "
                f"the one that it was trained with, and their open_clip config, into the folder of the encoders{also}"
            )
        if looks_named(need.encoder):
            return f"the adapter was trained with the image encoder {need.encoder}. {self._put(need.encoder)}"
        return (
            f"the adapter was trained with the image encoder {need.encoder}, which is not among the known ones "
            f"({known}); "
            f"put its weights and its open_clip config, {need.encoder}.json, side by side into the folder of the "
            "encoders"
        )

    def _put(self, name: str) -> str:
        """What to do for a tower by its published name."""
        repo, folders = hub(name), self._folders()
        where = f" (huggingface.co: {repo}, file model.safetensors)" if repo else ""
        return f"Put its weights{where} as {name}.safetensors into {folders[0] if folders else 'the encoders folder'}"

    def _missing(self, name: str, seen: Sequence[str], most: int = 12) -> str:
        spec, folders = ENCODERS.get(name), self._folders()
        if spec is None and looks_named(name):
            return f"the image encoder {name} was not found. {self._put(name)}"
        if spec is None:
            return f"no encoder named {name!r} is known; known are {', '.join(ENCODERS)}"
        places = ", ".join(str(folder) for folder in folders) or "no folder"
        more = f" and {len(seen) - most} more" if len(seen) > most else ""
        files = f"; seen there: {', '.join(seen[:most])}{more}" if seen else "; no weight file is there"
        hint = spec.pretrained_hint
        target = f" into {folders[0]} under any name" if folders else " into the encoders folder"
        source = f"Download it from huggingface.co: {hint} and put it" if hint else f"Put weights of {spec.shape}"
        remedy = f"{source}{target}"
        return f"the image encoder {name} was not found. {remedy}. Searched: {places}{files}"

    def _entries(self) -> Iterator[Recognised]:
        return (recognise(path) for path in self._weights())

    def _custom(self) -> list[Recognised]:
        """Files that have a config of their name, or a published tower's name; no other file is opened."""
        configs = {path for path in self._files() if path.suffix == ".json"}
        found = (
            recognise(path)
            for path in self._weights()
            if path.with_suffix(".json") in configs or looks_named(path.stem)
        )
        return [entry for entry in found if entry.custom]

    def _custom_stems(self) -> set[str]:
        return {entry.path.stem for entry in self._custom()}

    def _weights(self) -> list[Path]:
        found = []
        for folder in self._folders():
            files = [path for path in self._listing(Path(folder)).files if path.suffix.lower() in SUFFIXES]
            found += sorted(files, key=lambda path: (path.suffix.lower() != ".safetensors", str(path)))
        return list(dict.fromkeys(found))

    def _files(self) -> list[Path]:
        return [path for folder in self._folders() for path in self._listing(Path(folder)).files]

    def _listing(self, folder: Path) -> Listing:
        listing = self._listings.get(folder)
        if listing is None or not listing.is_current():
            listing = self._listings[folder] = walk(folder)
        return listing


def weight_file(given: Path | str) -> Path:
    """The file of an encoder that a path or a name names; names are looked for in ``models/clip_vision`` of the working
    folder, and of the WebUI that this package is an extension of. Raises EncoderMissing, BrokenEncoder."""
    path = Path(given)
    if os.path.exists(path) or path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        return path
    extensions = Path(__file__).resolve().parents[3]
    roots = [Path.cwd(), *([extensions.parent] if extensions.name == "extensions" else [])]
    return Catalog([root / "models" / "clip_vision" for root in roots]).find(str(given)).path


def absolute_weight_file(given: str) -> str:
    """As ``weight_file``, from this process's folder on, for a command that will run in another. A path is not looked
    at. Raises ConfigError."""
    try:
        return os.path.abspath(weight_file(os.path.expanduser(given)))
    except EncoderError as error:
        raise ConfigError("encoder", given, f"a file that is there, or an encoder's name: {error}") from None


def find_encoder(name: str, folders: Sequence[Path]) -> Path:
    """The file of an encoder in ``folders``. Raises EncoderMissing, BrokenEncoder."""
    return Catalog(folders).find(name).path
