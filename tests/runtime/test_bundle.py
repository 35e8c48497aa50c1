"""A bundle is opened only when every file is the one that was sealed, and replaced whole."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laco_runtimes import bundle as bundle_module
from laco_runtimes import replace as replace_module
from laco_runtimes.bundle import (
    open_bundle,
    replace_folder,
    seal_bundle,
    write_atomic,
)
from laco_runtimes.errors import ArgumentError, BundleError, BundleNotFoundError
from laco_runtimes.manifest import FORMAT_VERSION, MANIFEST_NAME, OLDEST_FORMAT, BundleFacts
from laco_runtimes.replace import check_replaceable

FILES = (
    "README.md",
    "baseline/uncompressed/vision_encoder.onnx",
    "config.json",
    "onnx/decoder.onnx",
    "onnx/decoder.onnx.data",
    "onnx/embed_tokens.onnx",
    "onnx/vision_encoder.onnx",
    "tokenizer.json",
)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest in place, as a text editor would."""
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_sealed_bundle_opens_with_what_was_sealed(bundle: Path, facts: BundleFacts) -> None:
    opened = open_bundle(bundle)
    assert tuple(entry.path for entry in opened.manifest.files) == FILES
    assert BundleFacts(**opened.manifest.model_dump(exclude={"files"})) == facts
    assert opened.variant("uncompressed").tokens_per_tile == 16
    assert opened.tokenizer.is_file()


def test_a_bundle_opens_through_a_relative_path_and_through_a_linked_folder(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    (bundle.parent / "current").symlink_to(bundle.name)
    assert open_bundle("engine").root == open_bundle("current").root == bundle


def test_sealing_twice_gives_the_same_manifest(bundle: Path, facts: BundleFacts) -> None:
    first = (bundle / MANIFEST_NAME).read_bytes()
    (bundle / MANIFEST_NAME).unlink()
    seal_bundle(bundle, facts)
    assert (bundle / MANIFEST_NAME).read_bytes() == first


def test_a_path_with_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"does not exist.*laco export"):
        open_bundle(tmp_path / "none")


def test_a_folder_without_a_manifest_is_not_found(unsealed: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="holds no bundle"):
        open_bundle(unsealed)


def test_a_file_instead_of_a_folder_is_not_found(bundle: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        open_bundle(bundle / "config.json")


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_noticed(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"'{name}'.*not the one that was exported"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_noticed(bundle: Path, name: str) -> None:
    os.truncate(bundle / name, 3)
    with pytest.raises(BundleError, match=f"'{name}'.*not the one that was exported"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_lost_file_is_noticed(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"lost its file '{name}'"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["onnx/extra.onnx.data", ".hidden", "new/folder/file"])
def test_an_extra_file_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"'{name}', which its manifest does not list"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_symlink_is_refused_even_to_the_same_bytes(bundle: Path, name: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(bundle)


def test_a_linked_folder_is_refused(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle.parent / "elsewhere")
    (bundle / "onnx").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(BundleError, match=r"'onnx'.*is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_NAME])
def test_a_hard_link_is_refused(bundle: Path, name: str) -> None:
    os.link(bundle / name, bundle.parent / "second_name")
    with pytest.raises(BundleError, match="hard-linked"):
        open_bundle(bundle)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_pipe_is_refused_and_not_waited_for(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    with pytest.raises(BundleError, match="no file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "path", ["../outside", "onnx/../../outside", "/etc/passwd", "onnx//x", "./x", "a\\b", "", "C:x"]
)
@pytest.mark.parametrize("place", ["files", "decoder", "variant"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str, place: str) -> None:
    (bundle.parent / "outside").write_bytes(b"x")

    def change(data: dict[str, Any]) -> None:
        if place == "files":
            data["files"][0]["path"] = path
        elif place == "decoder":
            data["decoder"] = path
        else:
            data["variants"][0]["vision_encoder"] = path

    edit(bundle, change)
    with pytest.raises(BundleError, match=r"files\.0\.path|decoder|variants\.0\.vision_encoder"):
        open_bundle(bundle)


def test_a_newer_format_says_so(bundle: Path) -> None:
    newer = FORMAT_VERSION + 1
    edit(bundle, lambda data: data.update(format_version=newer, surprise=1))
    named = rf"newer version.*format is {newer}.*reads {OLDEST_FORMAT} to {FORMAT_VERSION}"
    with pytest.raises(BundleError, match=named):
        open_bundle(bundle)


def test_an_older_format_says_so(bundle: Path) -> None:
    older = OLDEST_FORMAT - 1
    edit(bundle, lambda data: data.update(format_version=older))
    named = rf"older version.*format is {older}.*reads {OLDEST_FORMAT} to {FORMAT_VERSION}"
    with pytest.raises(BundleError, match=named):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [0, -1, "two", None, 1.5])
def test_any_other_format_is_refused(bundle: Path, version: object) -> None:
    edit(bundle, lambda data: data.update(format_version=version))
    with pytest.raises(BundleError, match="key 'format_version'"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", "\x00", '{"format_version": 1', "[" * 100_000),
        '{"format_version": NaN}',
        '{"format_version": Infinity}',
    ],
)
def test_a_damaged_manifest_is_a_bundle_error(bundle: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleError, match=r"damaged|not valid"):
        open_bundle(bundle)


def test_bytes_that_are_no_text_are_a_damaged_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(bundle)


def test_a_manifest_cut_anywhere_is_a_bundle_error(bundle: Path) -> None:
    whole = (bundle / MANIFEST_NAME).read_bytes()
    for length in range(0, len(whole) - 2, 97):
        (bundle / MANIFEST_NAME).write_bytes(whole[:length])
        with pytest.raises(BundleError):
            open_bundle(bundle)


def test_an_absurdly_large_manifest_is_not_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleError, match="too large"):
        open_bundle(bundle)


def drop_tokenizer(data: dict[str, Any]) -> None:
    data["files"] = [entry for entry in data["files"] if entry["path"] != "tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.pop("language"), "key 'language'"),
        (lambda data: data["language"].pop("layers"), r"key 'language\.layers'"),
        (lambda data: data.update(surprise=1), "key 'surprise'"),
        (lambda data: data["vision"].update(image_size=0), r"key 'vision\.image_size'"),
        (lambda data: data["prompt"].update(stop=[]), r"key 'prompt\.stop'"),
        (lambda data: data["prompt"].update(stop=[260]), "id 260"),
        (lambda data: data["prompt"].update(image_token_id=10_000), "id 10000"),
        (lambda data: data["preprocessing"].update(std=[0, 1, 1]), r"key 'preprocessing\.std\.0'"),
        (lambda data: data["preprocessing"].update(image_size=9), "image_size"),
        (lambda data: data["files"][1].update(sha256="0" * 63), r"key 'files\.1\.sha256'"),
        (lambda data: data["files"].append(data["files"][0]), "listed twice"),
        (lambda data: data.update(decoder="onnx/none.onnx"), "'onnx/none.onnx' is not in the list"),
        (drop_tokenizer, "'tokenizer.json' is not in the list"),
        (lambda data: data["precision"].pop("decoder"), "precision of 'decoder'"),
        (lambda data: data["variants"].reverse(), "begin with 'laco'"),
        (lambda data: data["variants"][1].update(name="laco"), "distinct"),
    ],
)
def test_a_wrong_manifest_is_refused_and_the_key_named(
    bundle: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=named):
        open_bundle(bundle)


def test_an_unknown_variant_lists_the_known_ones(bundle: Path) -> None:
    with pytest.raises(ArgumentError, match="laco, uncompressed"):
        open_bundle(bundle).variant("external")


def test_a_sealed_folder_is_not_sealed_again(bundle: Path, facts: BundleFacts) -> None:
    with pytest.raises(BundleError, match="sealed already"):
        seal_bundle(bundle, facts)


def test_a_folder_with_a_link_is_not_sealed(unsealed: Path, facts: BundleFacts) -> None:
    (unsealed / "link").symlink_to("config.json")
    with pytest.raises(BundleError, match="is a link"):
        seal_bundle(unsealed, facts)
    assert not (unsealed / MANIFEST_NAME).exists()


@pytest.mark.parametrize("name", ["with space", ".hidden", "ümlaut"])
def test_a_file_name_that_no_manifest_can_hold_is_not_sealed(
    unsealed: Path, facts: BundleFacts, name: str
) -> None:
    (unsealed / name).write_bytes(b"")
    with pytest.raises(BundleError, match=r"files\.\d+\.path"):
        seal_bundle(unsealed, facts)
    assert not (unsealed / MANIFEST_NAME).exists()


def test_a_bundle_lacking_a_graph_is_not_sealed(unsealed: Path, facts: BundleFacts) -> None:
    (unsealed / facts.decoder).unlink()
    with pytest.raises(BundleError, match=r"'onnx/decoder\.onnx' is not in the list"):
        seal_bundle(unsealed, facts)
    assert not (unsealed / MANIFEST_NAME).exists()


def test_a_finished_folder_moves_to_a_new_place(bundle: Path) -> None:
    final = bundle.parent / "deep" / "er" / "final"
    replace_folder(bundle, final)
    assert open_bundle(final).root == final
    assert not bundle.exists()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle of the past; what counts is that it says it is one."""
    final = tmp_path / "final"
    (final / "onnx").mkdir(parents=True)
    (final / MANIFEST_NAME).write_text("old")
    (final / "onnx" / "old.onnx").write_text("old")
    return final


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_finished_folder_takes_the_place_of_an_old_bundle(
    bundle: Path, old: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(replace_module, "_exchange", lambda one, other: False)
    replace_folder(bundle, old)
    assert open_bundle(old).root == old
    assert list(old.parent.iterdir()) == [old]


def test_a_linked_place_stays_a_link_and_its_target_is_replaced(bundle: Path, old: Path) -> None:
    link = old.parent / "current"
    link.symlink_to(old.name)
    replace_folder(bundle, link)
    assert link.is_symlink()
    assert open_bundle(link).root == old


def test_an_empty_folder_may_be_replaced(bundle: Path) -> None:
    final = bundle.parent / "empty"
    final.mkdir()
    replace_folder(bundle, final)
    assert open_bundle(final).root == final


def test_a_folder_that_is_no_bundle_is_left_alone(bundle: Path) -> None:
    home = bundle.parent / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match="not a bundle"):
        replace_folder(bundle, home)
    assert (home / "thesis.tex").read_text() == "years of work"
    assert open_bundle(bundle).root == bundle


def test_a_file_is_not_replaced_by_a_folder(bundle: Path) -> None:
    final = bundle.parent / "file"
    final.write_text("mine")
    with pytest.raises(ArgumentError, match="not a bundle"):
        check_replaceable(final)


def test_the_old_bundle_returns_when_the_new_one_cannot_be_moved(
    bundle: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace_module, "_exchange", lambda one, other: False)
    with pytest.raises(OSError, match="none"):
        replace_folder(bundle.parent / "none", old)
    assert (old / "onnx" / "old.onnx").read_text() == "old"


# A process of its own, because it forks: pytest's may hold the threads of an engine.
KILL_AT_EVERY_LINE = """
import os, shutil, signal, sys
from pathlib import Path
from laco_runtimes import bundle, replace

new, old = Path(sys.argv[1]), Path(sys.argv[2])
seen, lines, status = [], 0, 1
while status != 0:
    work = new.parent / "work"
    shutil.copytree(new, work / "finished")
    shutil.copytree(old, work / "final")
    left = lines
    if (child := os.fork()) == 0:
        def trace(frame, event, arg):
            global left
            if frame.f_code.co_filename == replace.__file__:
                left -= event == "line"
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return trace
        sys.settrace(trace)
        replace.replace_folder(work / "finished", work / "final")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    if (work / "final" / "onnx" / "old.onnx").is_file():
        seen.append("old")
    else:
        bundle.open_bundle(work / "final")
        seen.append("new")
    shutil.rmtree(work)
    lines += 1
print(*seen)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is sure to exchange folders")
def test_a_kill_at_any_line_leaves_the_old_bundle_or_the_new(bundle: Path, old: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_EVERY_LINE, bundle, old],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = done.stdout.split()
    assert len(seen) > 20
    assert sorted(seen, reverse=True) == seen  # old, ..., old, new, ..., new
    assert set(seen) == {"old", "new"}


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_atomic(path, b"old")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(replace_module.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_a_written_file_has_the_mode_that_any_new_file_has(tmp_path: Path) -> None:
    write_atomic(tmp_path / "one", b"")
    (tmp_path / "two").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("one", "two")}
    assert len(modes) == 1
