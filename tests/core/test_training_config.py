"""The training's config: what is refused and how, what wins, what its hash covers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_ipadapter.errors import ConfigError
from lib_ipadapter.options import fields_of
from lib_ipadapter.training.command import add_arguments, from_arguments
from lib_ipadapter.training.config import TrainConfig
from lib_ipadapter.training.yaml_file import read_yaml

LEAST = {"base": "base.safetensors", "data": "pictures", "encoder": "clip.safetensors", "out": "run"}
ROWS = {row.name: row for row in fields_of(TrainConfig)}
HINTS = get_type_hints(TrainConfig)


def parse(**values: Any) -> TrainConfig:
    return TrainConfig.parse({**LEAST, **values})


def flags(*words: str) -> TrainConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(list(words)))


def least_flags() -> list[str]:
    return [word for name, value in LEAST.items() for word in (f"--{name}", value)]


def bad_values() -> list[tuple[str, Any]]:
    """Of each field: other types, and what is just beyond its limits."""
    wrong: dict[Any, list[Any]] = {
        int: ["x", "3", 1.5, True, [1], float("nan")],
        float: ["x", "nan", "inf", True, [1.0], float("nan"), float("inf"), -float("inf")],
        bool: ["yes", 1, 0, 1.0],
        str: [3, True, ["x"], 1.5],
    }
    found: list[tuple[str, Any]] = []
    for name, row in ROWS.items():
        optional = HINTS[name] == int | None
        kind = int if optional else HINTS[name]
        values = [*wrong[kind], {}, *([] if optional else [None])]
        step = 1 if kind is int else 1e-6
        if math.isfinite(row.minimum):
            low = row.minimum
            values += [low if row.above else low - step, row.maximum + max(step, 1)]
        if row.choices:
            values.append("other")
        found += [(name, value) for value in values]
    return found


@pytest.mark.parametrize(("name", "value"), bad_values(), ids=lambda x: repr(x)[:20])
def test_a_bad_value_is_refused_with_the_field_the_value_and_what_was_expected(name, value):
    with pytest.raises(ConfigError) as caught:
        parse(**{name: value})
    message = str(caught.value)
    shown = float(value) if HINTS[name] is float and isinstance(value, int | str) and value != "x" else value
    assert message.startswith((f"{name}: got {value!r}, expected ", f"{name}: got {shown!r}, expected "))
    row = ROWS[name]
    wanted = (
        row.choices or ("number",)
        if math.isfinite(row.minimum) or row.choices
        else ("a string", "a path", "weight file", "true or false")
    )
    assert any(word in message.partition("expected ")[2] for word in wanted)
    assert caught.value.detail["field"] == name


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if math.isfinite(row.minimum)])
def test_the_limits_themselves_are_allowed(name):
    row = ROWS[name]
    kind = float if HINTS[name] is float else int
    aside = {"resolution", "tokens", "ema", "warmup", "drop_image", "drop_text", "drop_both"}
    for value in (row.minimum, row.maximum):
        if not (row.above and value == row.minimum) and name not in aside:
            assert getattr(parse(**{name: value}), name) == kind(value)
    assert parse(tokens=1024).tokens == 1024
    assert parse(resolution=32).resolution == 32
    assert parse(ema=0).ema == 0.0


def test_numbers_are_what_their_field_says():
    config = parse(lr=1, weight_decay="1e-4", max_norm=0)
    assert (config.lr, config.weight_decay, config.max_norm) == (1.0, 1e-4, 0.0)
    assert {type(value) for value in (config.lr, config.weight_decay, config.max_norm)} == {float}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learning_rate", ""),
        ("stepss", "steps"),
        ("warm_up", "warmup"),
        ("Batch", "batch"),
        ("zzz", ""),
        (3, ""),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(written, meant):
    with pytest.raises(ConfigError, match="one of the fields") as caught:
        TrainConfig.parse({**LEAST, written: 1})
    assert str(caught.value).startswith(f"{written}: got 1")
    assert f"did you mean {meant}" in str(caught.value) if meant else True
    if written == "zzz":
        assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", LEAST)
def test_what_has_no_default_must_be_given(name):
    with pytest.raises(ConfigError, match=f"^{name}: "):
        TrainConfig.parse({key: value for key, value in LEAST.items() if key != name})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"drop_image": 0.5, "drop_text": 0.4, "drop_both": 0.2}, "drop_image"),
        ({"warmup": 11, "steps": 10}, "warmup"),
        ({"ema": 1.0}, "ema"),
        ({"variant": "full", "tokens": 4}, "tokens"),
        ({"resolution": 100}, "resolution"),
        ({"optimizer": "prodigy"}, "lr"),
        ({"optimizer": "schedule-free", "schedule": "cosine"}, "schedule"),
        ({"optimizer": "schedule-free", "ema": 0.9}, "ema"),
        ({"cache": True, "flip": 0.5}, "flip"),
        ({"cache": True, "random_crop": True}, "random_crop"),
        ({"init_layers": "a file", "init": "another"}, "init_layers"),
        ({"init_layers": "a file", "attention": "concat"}, "init_layers"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values, named):
    with pytest.raises(ConfigError, match=f"^{named}"):
        parse(**values)


def test_shares_that_make_one_together_are_allowed():
    parse(drop_image=0.7, drop_text=0.2, drop_both=0.1)


# YAML and flags


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**LEAST, "lr": 0.5, "batch": 3, "cache": True, "variant": "plus"}))
    config = flags(str(path), "--batch", "5", "--no-cache", "--variant", "full", "--sample-every", "7")
    assert (config.lr, config.batch, config.cache, config.variant) == (0.5, 5, False, "full")
    assert (config.sample_every, config.steps) == (7, ROWS["steps"].default)
    assert flags(str(path)).cache is True


def test_a_flag_that_gives_zero_wins_too(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**LEAST, "workers": 4, "weight_decay": 0.5, "sample_prompt": "x"}))
    config = flags(str(path), "--workers", "0", "--weight-decay", "0", "--sample-prompt", "")
    assert (config.workers, config.weight_decay, config.sample_prompt) == (0, 0.0, "")


def test_every_field_is_a_flag():
    given: list[str] = []
    wanted: dict[str, Any] = {}
    for name, row in ROWS.items():
        flag = f"--{name.replace('_', '-')}"
        if HINTS[name] is bool:
            wanted[name] = not row.default
            given.append(flag if wanted[name] else f"--no-{flag[2:]}")
            continue
        if row.choices:
            value: Any = row.choices[-1]
        elif math.isfinite(row.minimum):
            value = {
                "steps": 7,
                "warmup": 1,
                "drop_image": 0.25,
                "drop_text": 0.25,
                "drop_both": 0.25,
            }.get(name)
            value = value or (0.5 if HINTS[name] is float else int(row.minimum))
        else:
            value = f"some {name}" if name != "stages" else "512px x 7steps x 3"
        wanted[name] = value
        given += [flag, str(value)]
    # Full has no tokens; init and concat leave no K', V' to begin with.
    # Latents that are cached are of pictures as they are.
    given[given.index("--cache")] = "--no-cache"
    wanted["cache"] = False
    # Compiled weights are neither converted nor computed again.
    given[given.index("--compile")] = "--no-compile"
    wanted["compile"] = False
    # Stages have resolutions of their own.
    at = given.index("--resolution")
    del given[at : at + 2]
    wanted["resolution"] = None
    for name, value in {"variant": "base", "init": "", "attention": "decoupled", "optimizer": "adamw8bit"}.items():
        wanted[name] = given[given.index(f"--{name}") + 1] = value
    assert flags(*given).as_dict() == wanted
    for name, value in {"variant": "plus", "init": "some init", "attention": "concat"}.items():
        assert getattr(flags(*least_flags(), f"--{name}", value), name) == value


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--steps", "many"), ("--steps", "1.5"), ("--lr", "fast"), ("--lr", "nan"), ("--tokens", "0")],
)
def test_a_flag_with_a_bad_value_is_refused_as_the_file_would_be(flag, text):
    with pytest.raises(ConfigError, match=f"^{flag[2:]}: "):
        flags(*least_flags(), flag, text)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "'1e-4'"])
def test_a_learning_rate_is_a_number_however_yaml_writes_it(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"{yaml.safe_dump(LEAST)}lr: {text}\n")
    assert flags(str(path)).lr == 1e-4
    assert flags(*least_flags(), "--lr", text.strip("'")).lr == 1e-4


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"[1, 2]", "mapping"), (b"text", "mapping"), (b"a: [", "plain YAML"), (b"\xff\xfe\xff", "plain YAML"),
     (b"a: !!python/object/apply:os.getcwd []", "plain YAML"), (b"a: !!bool maybe", "plain YAML"),
     (b'a: !!int ""', "plain YAML"), (b"a: !!timestamp x", "plain YAML"), (b"a: 2026-99-99", "plain YAML"),
     (b"a: " + b"[" * 60_000, "20 levels deep"), (b"{" * 60_000, "20 levels deep"),
     (b"a: &x [1]\nb: *x", "write them out"),
     (b"steps: 1\nsteps: 2", "steps: got 'two lines'"), (b"steps: 1\n" * 9000, "at most 65536")],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, expected):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_yaml(path)
    assert "c.yaml" in str(caught.value)


def test_a_file_that_is_absent_or_a_folder_is_refused_and_an_empty_one_has_no_fields(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match="a file that can be read"):
            read_yaml(path)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


# hash, and the resolved file


@pytest.mark.parametrize(
    ("name", "value"),
    [("out", "elsewhere"), ("workers", 7), ("prefetch", 9), ("data", "x"), ("base", "x"), ("encoder", "x"),
    ("init", "x"),
     ("base_config", "x"),
     ("cache_dir", "x"), ("keep", 9),
     ("save_every", 3), ("tensorboard", False), ("sample_every", 3), ("sample_prompt", "x"), ("steps", 5),
     ("validation", "x"), ("wandb", "x"),
     ("validation_every", 9), ("validation_count", 9)],
)  # fmt: skip
def test_the_hash_leaves_out_what_does_not_decide_the_outcome(name, value):
    assert parse(**{name: value}) != parse()
    assert parse(**{name: value}).hash == parse().hash


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 2e-4), ("seed", 1), ("batch", 9), ("accumulate", 2), ("cache", True), ("cache_text", True),
     ("cache_half", False), ("buckets", True), ("bucket_step", 128), ("noise_offset", 0.1), ("flip", 0.5),
     ("random_crop", True),
     ("optimizer", "adamw8bit"), ("storage", "fp8"), ("prediction", "v"),
     ("reference_crop", 0.5), ("reference_flip", 0.5),
     ("reference_colour", 0.2), ("reference_background", 0.5), ("stages", "512px x 5steps x 2"),
     ("variant", "plus"), ("attention", "concat"), ("tokens", 5), ("resolution", 64), ("ema", 0.9),
     ("precision", "bf16"), ("drop_image", 0.1), ("drop_text", 0.1), ("drop_both", 0.1), ("max_norm", 2.0),
     ("warmup", 3), ("schedule", "cosine"), ("weight_decay", 0.1), ("resampler_dim", 64), ("resampler_depth", 2),
     ("resampler_heads", 2)],
)  # fmt: skip
def test_the_hash_covers_what_decides_the_outcome(name, value):
    assert parse(**{name: value}).hash != parse().hash


def test_the_hash_is_the_same_in_another_process():
    """Literal, so that a change of the hash, which ends the resuming of older runs, is noticed."""
    assert parse().hash == "0ca73dc4107c4fd7"
    assert parse().hash == parse(lr="1e-4").hash == parse(lr=0.0001).hash


def field_values() -> st.SearchStrategy[dict[str, Any]]:
    """Any values that are allowed, field by field."""
    text = st.text("aB01 :#-{}[]!&*%@|>'\"\\~=.,?äあ\u2028😀", min_size=1, max_size=12)
    kept: dict[str, st.SearchStrategy[Any]] = {}
    for name, row in ROWS.items():
        meta, hint = row, HINTS[name]
        if meta.choices:
            kept[name] = st.sampled_from(meta.choices)
        elif hint is bool:
            kept[name] = st.booleans()
        elif hint is str:
            kept[name] = text
        elif hint is float:
            kept[name] = st.floats(1e-12, min(meta.maximum, 0.3))
        else:
            kept[name] = st.integers(int(meta.minimum), int(meta.maximum))
    kept["resolution"] = st.none() | st.integers(4, 512).map(lambda n: 8 * n)
    kept["warmup"] = st.just(0)
    kept["stages"] = st.just("")
    kept["cache"] = st.just(False)
    kept["optimizer"] = st.sampled_from(("adamw", "adamw8bit"))
    kept["variant"] = st.sampled_from(("base", "plus"))
    return st.fixed_dictionaries(kept).map(
        lambda values: {**values, "init_layers": ""} if values["attention"] == "concat" else {**values, "init": ""}
    )


@settings(max_examples=60, deadline=None)
@given(values=field_values())
def test_the_resolved_yaml_is_the_same_config(tmp_path_factory, values):
    from lib_ipadapter.training.run_folder import RunFolder

    if values.get("compile"):
        values = {**values, "storage": "auto", "checkpointing": False}
    config = TrainConfig.parse(values)
    root: Path = tmp_path_factory.getbasetemp() / "resolved"
    RunFolder(root, config).begin()
    again = TrainConfig.parse(read_yaml(root / "config.yaml"))
    assert again == config
    assert again.hash == config.hash
    assert set(read_yaml(root / "config.yaml")) == set(ROWS)


def test_a_value_of_any_size_is_refused_in_few_words():
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    wide = {"a": ["x" * 10**6] * 50}
    for values in (
        {"steps": 1 << 80_000}, {"steps": deep}, {"steps": wide}, {"x" * 10**6: 1}, {"lr": "9" * 9000},
        {"stages": [{"resolution": 1 << 80_000, "steps": 1, "batch": 1}]}, {"stages": "x" * 10**6},
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            parse(**values)
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("text", ["9992px x 1steps x 1", "512px x 1steps x 99999"])
def test_a_stage_has_the_bounds_of_the_fields_it_stands_for(text):
    with pytest.raises(ConfigError, match="from 32 to 4096"):
        parse(stages=text)
    with pytest.raises(ConfigError, match="at most 100000000 steps in all"):
        parse(stages="512px x 60000000steps x 1, 512px x 60000000steps x 1")
