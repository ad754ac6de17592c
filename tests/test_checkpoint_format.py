"""What is saved comes back bit for bit, and whatever was changed since is refused by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from truing.errors import CheckpointError, NonFiniteError
from truing.learn import checkpoint
from truing.learn.checkpoint import load, newest, save, verify
from truing.learn.tensors import digest

TENSORS = {
    "policy": {"w": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7, "b": torch.tensor(2.5, dtype=torch.bfloat16)},
    "optimizer": {"w.exp_avg": torch.full((3, 4), 1e-30), "step": torch.tensor([5])},
}
STATE = {"kl_coef": 0.1 + 0.2, "count": 2**80, "nested": {"list": [1, 2.5, None, "é"]}}


def make(root: Path, step: int = 1, keep: int = 9) -> Path:
    tensors = {g: {k: t + step for k, t in named.items()} for g, named in TENSORS.items()}
    return save(root, step, tensors, {**STATE, "step": step}, config_hash="abc", keep=keep)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path / "deep" / "root", 120, TENSORS, STATE, config_hash="abc")
    assert folder.name == "step-000120"
    back = load(folder)
    assert (back.folder, back.step, back.state, back.config_hash) == (folder, 120, STATE, "abc")
    assert back.tensors.keys() == TENSORS.keys()
    for group, named in TENSORS.items():
        assert back.tensors[group].keys() == named.keys()
        assert all(same(back.tensors[group][k], t) for k, t in named.items())


dtypes = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip
shapes_and_dtypes = st.tuples(st.sampled_from(dtypes), st.lists(st.integers(0, 4), max_size=3))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), shapes_and_dtypes, max_size=6))
def test_the_library_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, shapes: dict) -> None:
    named = {name: torch.arange(math.prod(shape)).remainder(2).reshape(shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    folder = save(tmp_path_factory.mktemp("c"), 0, {"g": named}, {}, config_hash="")
    read = load_file(folder / "g.safetensors")
    assert read.keys() == named.keys() and all(same(read[k], t) for k, t in named.items())


def test_views_and_negative_zero(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    odd = {"transposed": base.T, "strided": base[::2, 1::2], "expanded": torch.tensor([1.0]).expand(3), "zero": torch.tensor([-0.0])}
    odd["leaf"] = torch.ones(2, requires_grad=True)
    back = load(save(tmp_path, 0, {"g": odd}, {}, config_hash="")).tensors["g"]
    assert all(same(back[k], t.detach().contiguous()) for k, t in odd.items())
    assert math.copysign(1, back["zero"].item()) == -1


def test_loaded_tensors_are_aligned_and_outlive_the_folder(tmp_path: Path) -> None:
    folder = save(tmp_path, 0, {"g": {"a": torch.ones(1), "b": torch.ones(33), "c": torch.ones(7)}}, {}, config_hash="")
    back = load(folder)
    assert all(t.data_ptr() % 64 == 0 for t in back.tensors["g"].values())
    (folder / "g.safetensors").write_bytes(b"")  # a mapped file cut short would kill the process at the next access
    assert all(float(t.sum()) == t.numel() for t in back.tensors["g"].values())


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, 10)
    folder = make(tmp_path, 20)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert (manifest["step"], manifest["parent"], manifest["config_hash"]) == (20, "step-000010", "abc")
    assert set(manifest["files"]) == {"policy.safetensors", "optimizer.safetensors", "state.json"}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert verify(folder) == manifest
    assert sorted(p.name for p in folder.iterdir()) == sorted([*manifest["files"], "MANIFEST.json"])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """Neither the order of names nor the moment shows."""
    one = save(tmp_path / "1", 0, {"g": {"a": torch.ones(1), "b": torch.ones(2)}, "h": {}}, {"x": 1, "y": 2}, config_hash="c")
    two = save(tmp_path / "2", 0, {"h": {}, "g": {"b": torch.ones(2), "a": torch.ones(1)}}, {"y": 2, "x": 1}, config_hash="c")
    assert all((two / p.name).read_bytes() == p.read_bytes() for p in one.iterdir())


# -- R4: corruption -------------------------------------------------------------------------------------------------


FILES = ["policy.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]


def refused(folder: Path, *names: str) -> None:
    for reader in (load, verify):
        with pytest.raises(CheckpointError) as caught:
            reader(folder)
        assert any(f"{folder / name}:" in str(caught.value) for name in names), caught.value


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_seen(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    data = (folder / name).read_bytes()
    for at in range(len(data)):
        for bit in range(8) if at % 16 == 0 else [at % 8]:
            (folder / name).write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            with pytest.raises(CheckpointError) as caught:
                verify(folder)
            assert f"{folder / name}:" in str(caught.value)
    refused(folder, name)
    (folder / name).write_bytes(data)
    load(folder)


def test_safetensors_alone_would_load_a_flipped_bit(tmp_path: Path) -> None:
    """Why the hash: the format has none."""
    file = make(tmp_path) / "policy.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    assert load_file(file)["w"].shape == (3, 4)


@pytest.mark.parametrize("name", FILES)
def test_cut_lengthened_emptied_deleted(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    data = (folder / name).read_bytes()
    for other in (data[:-1], data + b"\n", b"", data[: len(data) // 2]):
        (folder / name).write_bytes(other)
        refused(folder, name)
    (folder / name).unlink()
    refused(folder, name)
    (folder / name).mkdir()
    refused(folder, name)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(FILES, 2)))
def test_two_files_exchanged(tmp_path: Path, a: str, b: str) -> None:
    folder = make(tmp_path)
    (folder / a).rename(folder / "x")
    (folder / b).rename(folder / a)
    (folder / "x").rename(folder / b)
    refused(folder, a, b)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint(tmp_path: Path, name: str) -> None:
    one, two = make(tmp_path, 1), make(tmp_path, 2)
    shutil.copy(one / name, two / name)
    with pytest.raises(CheckpointError):
        load(two)


def test_a_whole_checkpoint_under_another_number(tmp_path: Path) -> None:
    make(tmp_path, 1).rename(tmp_path / "step-000009")
    refused(tmp_path / "step-000009", "MANIFEST.json")


def test_a_copy_under_another_name_is_fine(tmp_path: Path) -> None:
    shutil.copytree(make(tmp_path, 1), tmp_path / "best")
    assert load(tmp_path / "best").step == 1


@pytest.mark.parametrize("name", ["model.bin", "x.pt", "OPT.PKL", "a.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    (folder / name).write_bytes(b"\x80\x04.")
    refused(folder, name)


@pytest.mark.parametrize("name", ["../../secret.json", "/etc/passwd", "x.bin", "a/b.json", "..json", ""])
def test_a_forged_manifest_reaches_no_other_file(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"][name] = {"size": 1, "sha256": "0"}
    (folder / "MANIFEST.json").write_bytes(checkpoint._sealed(manifest))
    refused(folder, "MANIFEST.json")


@pytest.mark.parametrize(
    "change", [{"files": []}, {"files": {}}, {"files": {"state.json": 1}}, {"step": "1"}, {"step": None}, {"format": 2}, {"config_hash": 5}]
)
def test_a_sealed_manifest_of_the_wrong_form(tmp_path: Path, change: dict) -> None:
    folder = make(tmp_path)
    manifest = {**json.loads((folder / "MANIFEST.json").read_text()), **change}
    (folder / "MANIFEST.json").write_bytes(checkpoint._sealed(manifest))
    refused(folder, "MANIFEST.json")


@pytest.mark.parametrize("text", ["[]", "null", "{}", "[" * 100_000, '{"a":1}', "\ud800".encode("utf-8", "surrogatepass").decode("latin1")])
def test_no_manifest_at_all(tmp_path: Path, text: str) -> None:
    folder = make(tmp_path)
    (folder / "MANIFEST.json").write_text(text)
    refused(folder, "MANIFEST.json")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "step-000001")


# -- choosing -------------------------------------------------------------------------------------------------------


def test_newest(tmp_path: Path) -> None:
    assert newest(tmp_path) is None and newest(tmp_path / "absent") is None
    make(tmp_path, 999_999)
    folder = make(tmp_path, 1_000_000)  # seven digits: numbers are compared, not names
    (tmp_path / "step-9999999").write_text("a file")
    (tmp_path / "step-9999999.tmp-1-ab").mkdir()
    (tmp_path / "notes").mkdir()
    assert newest(tmp_path) == folder


def test_a_damaged_newest_one(tmp_path: Path) -> None:
    one, two = make(tmp_path, 1), make(tmp_path, 2)
    (two / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"step-000002/state\.json"):
        newest(tmp_path)
    with pytest.warns(UserWarning, match=r"step-000002/state\.json"):
        assert newest(tmp_path, fall_back=True) == one
    (one / "MANIFEST.json").unlink()
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=r"no checkpoint is whole.*state\.json.*MANIFEST\.json"):
        newest(tmp_path, fall_back=True)


def test_fall_back_is_silent_when_all_is_well(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest(tmp_path, fall_back=True) == folder


# -- saving ---------------------------------------------------------------------------------------------------------


def test_older_ones_are_pruned(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        make(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    make(tmp_path, 20, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000020"]


def test_saving_an_earlier_step_never_prunes_itself(tmp_path: Path) -> None:
    make(tmp_path, 30)
    make(tmp_path, 15, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000015", "step-000030"]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    make(tmp_path, 3)
    (tmp_path / "step-000003" / "state.json").write_text("damaged")
    folder = save(tmp_path, 3, {"g": {"a": torch.ones(1)}}, {"new": True}, config_hash="abc")
    assert load(folder).state == {"new": True} and [p.name for p in tmp_path.iterdir()] == ["step-000003"]


def test_leftovers_of_the_dead_are_cleaned(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid(), os.getppid()):
        (tmp_path / f"step-000001.tmp-{pid}-00ff").mkdir()
    (tmp_path / "step-000001.tmp-mine").mkdir()  # not a name of ours
    assert newest(tmp_path) is None
    make(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"step-000001.tmp-{os.getppid()}-00ff", "step-000001.tmp-mine", "step-000002"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_non_finite_weights_are_never_saved(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    good = make(tmp_path, 1)
    weights = torch.ones(5, dtype=dtype)
    weights[3] = bad
    with pytest.raises(NonFiniteError, match=r"step 2: 1 of 5 numbers of policy/lora\.w are NaN or infinite; not saved"):
        save(tmp_path, 2, {"policy": {"lora.w": weights}}, {}, config_hash="")
    assert newest(tmp_path) == good and len(list(tmp_path.iterdir())) == 1


def test_non_finite_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"state kl\.coef\.1 is NaN"):
        save(tmp_path, 2, {}, {"fine": 1.0, "kl": {"coef": [1.0, math.nan]}}, config_hash="")


@pytest.mark.parametrize(
    ("tensors", "state", "message"),
    [
        ({"a/b": {}}, {}, "used as a file name"),
        ({"..": {}}, {}, "used as a file name"),
        ({"g": {"x": [1.0]}}, {}, "g/x is a list"),
        ({"g": {"x": torch.ones(2).to_sparse()}}, {}, "g/x is a torch.sparse_coo"),
        ({"g": {"x": torch.ones(2, dtype=torch.complex64)}}, {}, "torch.complex64"),
        ({"g": {"__metadata__": torch.ones(2)}}, {}, "reserves"),
        ({}, {"x": torch.ones(1)}, "not plain JSON"),
        ({}, {"x": {0: "a"}}, "key 0"),
        ({}, {"x": [{None: "a"}]}, "key None"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, tensors: dict, state: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 1, tensors, state, config_hash="")
    assert list(tmp_path.iterdir()) == []


def test_bounds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keep=0"):
        make(tmp_path, 1, keep=0)
    with pytest.raises(CheckpointError, match="step=-1"):
        save(tmp_path, -1, {}, {}, config_hash="")


# -- the weights hash -----------------------------------------------------------------------------------------------


def test_digest_is_the_sha256_it_says() -> None:
    h = hashlib.sha256()
    rows: list[tuple[str, str, list[float]]] = [("a", "float32", [1.0, 2.0]), ("b", "int64", [3])]
    for name, dtype, values in rows:
        array = np.array(values, dtype=dtype)
        h.update(f'["{name}", "torch.{dtype}", [{len(values)}]]\n'.encode() + array.tobytes())
    assert digest({"b": torch.tensor([3]), "a": torch.tensor([1.0, 2.0])}) == h.hexdigest()


def test_digest_sees_every_difference() -> None:
    a = torch.tensor([1.0, 0.0])
    different: list[Any] = [
        {"a": a}, {"b": a}, {"g": {"a": a}}, {"a": a.double()}, {"a": a.reshape(2, 1)}, {"a": torch.tensor([1.0, -0.0])}, {"a": torch.nextafter(a, a + 1)},
        {"a": a.view(torch.int32)}, {"a": a, "b": torch.empty(0)}, {},
    ]  # fmt: skip
    assert len({digest(d) for d in different}) == len(different)
    assert digest({"g": {"a": a}}) == digest({"g/a": a})
    assert digest({"a": torch.arange(6).reshape(2, 3).T}) == digest({"a": torch.arange(6).reshape(2, 3).T.contiguous()})
