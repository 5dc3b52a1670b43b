"""What goes wrong on a shared machine, provoked for real: nothing is lost, and it is said."""

import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import train_resnet_improved as train
from backbone_weights import load_backbone_weights
from conftest import ROOT, SMALL, TESTS, TINY, make_koniq10k, photo
from datasets.labels import find_images, read_labels
from datasets.pixel_store import decode, open_store
from errors import DataError, RunError, WeightsError
from training.flags import parse_args
from training.records import UNDEFINED


def argv(folder, out, *more) -> list[str]:
    where = ["--backbone", SMALL]
    where += ["--data_path", folder, "--store_dir", f"{folder}.store", "--run_name", "run"]
    where += ["--log_dir", out, "--checkpoint_dir", out]
    return [*TINY, *map(str, [*where, *more])]


def process(arguments, *, before="", limit=None, **options) -> subprocess.CompletedProcess:
    """Training in a process of its own, with code that runs before, and a limit on files' size."""
    code = f"import os, resource, signal, sys; sys.path.insert(0, {str(TESTS)!r})\n"
    code += "import interventions\nfrom interventions import *\n"
    code += f"sys.argv = ['train_resnet_improved.py', *{list(arguments)!r}]\n{before}\n"
    code += "sys.exit(train_resnet_improved.main())"

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: an error, not a death
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=limited if limit else None,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def refused(done, *texts) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for text in texts:
        assert text in line


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}


# A full disk


def test_a_state_that_does_not_fit_leaves_the_checkpoints_before(koniq10k, tmp_path):
    out = tmp_path / "out"
    train.run(parse_args(argv(koniq10k, out, "--save_model", "--epochs", 1)))
    before = contents(out)
    more = ("--save_model", "--run_name", "second")
    done = process(argv(koniq10k, out, *more), limit=2_000_000)  # of 12 MB
    refused(done, "--log_dir", "second_state.pth", "can't be written")
    after = contents(out)
    # The first run's, renamed by their time.
    kept = {n: b for n, b in after.items() if ".2" in n and n.endswith(".pth")}
    assert sorted(map(len, kept.values())) == sorted(
        len(b) for n, b in before.items() if n.startswith(SMALL) and n.endswith(".pth")
    )
    assert {n: b for n, b in after.items() if n in before} == {
        n: b for n, b in before.items() if not n.startswith(SMALL)
    }
    assert not [n for n in after if n.endswith(".tmp")]
    assert len((out / "second.jsonl").read_text().splitlines()) == 2  # the epoch is recorded


def test_a_store_that_does_not_fit_leaves_none(koniq10k, tmp_path):
    done = process(argv(koniq10k, tmp_path / "out"), limit=20_000)  # eleven images of 5,760 bytes
    refused(done, "--store_dir", ".u8", "can't be written")
    assert not list(Path(f"{koniq10k}.store").glob("*.u8*"))


def test_a_log_that_does_not_fit_leaves_the_epochs_before(koniq10k, tmp_path):
    before = """
original = files.write_atomically
def full(path, text):
    if path.name == "run.jsonl" and text.count('"type": "epoch"') == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    return original(path, text)
replace(original, full)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"""
    out = tmp_path / "out"
    refused(process(argv(koniq10k, out), before=before), "run.jsonl", "can't be written")
    config, *epochs = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    assert config["type"] == "config" and [e["epoch"] for e in epochs] == [1]
    assert not list(out.glob("*.tmp"))


@pytest.fixture
def read_only(tmp_path):
    """A folder where nothing can be written, not even by root: a read-only mount."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("flag", ["--log_dir", "--checkpoint_dir", "--store_dir"])
def test_a_folder_that_cannot_be_written_is_found_before_training(
    koniq10k, read_only, flag, tmp_path
):
    arguments = argv(koniq10k, tmp_path / "out", "--save_model", flag, read_only)
    with pytest.raises((RunError, DataError), match="can't be written to"):
        train.run(parse_args(arguments))


# The pixel store


@pytest.fixture
def built(koniq10k, tmp_path):
    """A folder with a built pixel store: (folder, the store's file)."""
    train.run(parse_args(argv(koniq10k, tmp_path / "first", "--epochs", 1)))
    (path,) = Path(f"{koniq10k}.store").glob("*.u8")
    return koniq10k, path


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_flipped_bytes_are_never_trained_on(built, tmp_path, seed):
    folder, path = built
    pixels = bytearray(path.read_bytes())
    pixels[np.random.default_rng(seed).integers(len(pixels))] ^= 1
    path.write_bytes(pixels)
    for workers in (0, 2) if seed == 0 else (0,):
        done = process(argv(folder, tmp_path / f"out{workers}", "--workers", workers))
        refused(done, str(path), "is damaged", "delete the file")
    path.unlink()
    train.run(parse_args(argv(folder, tmp_path / "again")))


def damaged_headers(header: dict):
    """Headers that are not those of the store, each with what is wrong."""
    images = header["images"]
    first, second = list(images)[:2]
    twice = {**images, first: images[first] | {"row": images[second]["row"]}}
    yield "a row twice", header | {"images": twice}
    yield "a row outside", header | {"images": {**images, first: images[first] | {"row": 99}}}
    yield "a word for a row", header | {"images": {**images, first: images[first] | {"row": "0"}}}
    yield "another size", header | {"resize": [40, 48]}
    yield "another version", header | {"version": 99}
    yield "no images", header | {"images": {}}
    yield "a list", []
    swapped = {**images, first: images[first] | {"row": images[second]["row"]}}
    swapped[second] = images[second] | {"row": images[first]["row"]}
    yield "two images swapped", header | {"images": swapped}


def test_a_header_that_does_not_fit_is_built_anew_or_refused(built, tmp_path):
    folder, path = built
    good, header = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    table, _ = read_labels("koniq-10k", folder)
    wanted = {r.image: r.mos for r in table.itertuples()}
    for what, bad in damaged_headers(header):
        path.with_suffix(".json").write_text(json.dumps(bad))
        store, opened = open_store(
            find_images(table, folder), folder, resize=(48, 40), store_dir=path.parent,
            name="koniq-10k",
        )  # fmt: skip
        rows = opened["row"].to_numpy()
        same = all(
            (store.pixels[row] == decode(folder / image, 48, 40)).all()
            for image, row in zip(opened["image"], rows)
        )
        if not same:  # two images swapped, with their checksums in place
            with pytest.raises(DataError, match="is damaged"):
                store.check(rows)
        assert same or what == "two images swapped"
        assert len(opened) == len(wanted)
        path.write_bytes(good)


def test_a_store_cut_short_is_built_anew(built, tmp_path, capsys):
    folder, path = built
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    train.run(parse_args(argv(folder, tmp_path / "again")))
    assert path.read_bytes() == whole


def test_a_builder_that_was_killed_leaves_nothing_that_is_trusted(koniq10k, tmp_path):
    before = "dies_at(pixel_store, 'decode', 6)"
    done = process(argv(koniq10k, tmp_path / "out"), before=before)
    assert done.returncode == -signal.SIGKILL
    assert not list(Path(f"{koniq10k}.store").glob("*.u8"))
    train.run(parse_args(argv(koniq10k, tmp_path / "again")))
    assert not list(Path(f"{koniq10k}.store").glob("*.tmp"))


# Images


def test_an_image_that_goes_away_or_breaks_is_named(koniq10k, tmp_path):
    before = "original = pixel_store.open_store\n"
    before += "def late(table, folder, **o):\n"
    before += "    Path(folder, '1024x768', '1003.jpg').unlink()\n"
    before += "    return original(table, folder, **o)\nreplace(original, late)"
    done = process(argv(koniq10k, tmp_path / "out"), before=before)
    assert done.returncode == 1 and "1024x768/1003.jpg: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_that_claims_to_be_huge_is_refused(koniq10k, tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    bomb = b"\x89PNG\r\n\x1a\n"
    bomb += chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (koniq10k / "1024x768" / "1003.jpg").write_bytes(bomb)
    done = process(argv(koniq10k, tmp_path / "out"))
    assert (
        done.returncode == 1 and "1003.jpg: Image size (3600000000 pixels) exceeds" in done.stderr
    )


def test_a_link_that_leads_outside_is_refused(koniq10k, tmp_path):
    image = koniq10k / "1024x768" / "1003.jpg"
    photo(tmp_path / "outside.jpg", 90)
    image.unlink()
    image.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(DataError, match="1 images are links to places outside"):
        train.run(parse_args(argv(koniq10k, tmp_path / "out")))


# Training


def test_a_loss_that_is_not_finite_keeps_the_checkpoint_before(koniq10k, tmp_path):
    out = tmp_path / "out"
    before = "original, calls = data_loader.to_network_input, []\n"
    before += "def breaks(batch, device):\n    calls.append(1)\n    x = original(batch, device)\n"
    before += "    return x * float('nan') if len(calls) == 7 else x\n"  # the third step of epoch 2
    before += "replace(original, breaks)"
    done = process(argv(koniq10k, out, "--save_model"), before=before)
    refused(
        done, "epoch 2, step 3 of 3: the loss is not finite", "run_state.pth was saved before that"
    )
    state = torch.load(out / "run_state.pth", weights_only=True)
    assert len(state["epochs"]) == 1
    assert all(t.isfinite().all() for t in state["model"].values())


def test_constant_predictions_are_said_and_never_the_best(koniq10k, tmp_path):
    before = "net = models_resnet_improved.TargetNet\noriginal = net.forward\n"
    before += "net.forward = lambda s, q, r: original(s, q, r) * 0 + 50"
    out = tmp_path / "out"
    done = process(argv(koniq10k, out, "--save_model"), before=before)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"undefined ({UNDEFINED})") == 6
    assert [p.name for p in out.glob(f"{SMALL}*.pth")] == [f"{SMALL}_ss_noatt_last.pth"]


def test_memory_that_runs_out_is_one_sentence(koniq10k, tmp_path):
    before = "def less(batch):\n"
    before += "    used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    before += "    resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))\n"
    before += "before_each_step(less)"
    done = process(argv(koniq10k, tmp_path / "out"), before=before)
    refused(done, "out of memory", "--batch_size")


def test_a_worker_that_dies_is_one_sentence(koniq10k, tmp_path):
    before = "original = data_loader.Batches.__getitem__\nme = os.getpid()\n"
    before += "def dies(self, index):\n"
    before += "    if index == 2 and os.getpid() != me: os.kill(os.getpid(), 9)\n"
    before += "    return original(self, index)\ndata_loader.Batches.__getitem__ = dies"
    done = process(argv(koniq10k, tmp_path / "out", "--workers", 2), before=before)
    refused(done, "a process that cuts crops has died", "--workers 0")


@pytest.mark.parametrize(
    "error",
    [pytest.param("ConnectionResetError(104, 'reset')", marks=pytest.mark.slow), "EOFError()"],
)
def test_so_is_one_that_is_not_yet_known_to_be_dead(koniq10k, tmp_path, error):
    """Its connection has ended by then; for such an end, a stand-in raises the error."""
    before = "from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers\n"
    before += f"def ended(*_): raise {error}\nWorkers._next_data = ended"
    done = process(argv(koniq10k, tmp_path / "out", "--workers", 1), before=before)
    refused(done, "a process that cuts crops has died", "--workers 0")


def test_a_worker_is_silent_when_the_run_leaves_it(koniq10k, tmp_path):
    """The run hears that another worker has died while it takes a batch from this one."""
    before = "import time\nfrom multiprocessing import connection, resource_sharer\n"
    before += "def leaves(ident):\n"
    before += "    connection.Client(ident[0], authkey=None).close()\n"
    before += "    time.sleep(1)  # for what the worker has to say\n"
    before += "    raise RuntimeError('DataLoader worker (pid(s) 2) exited unexpectedly')\n"
    before += "resource_sharer._resource_sharer.get_connection = leaves"
    done = process(argv(koniq10k, tmp_path / "out", "--workers", 1), before=before)
    refused(done, "a process that cuts crops has died", "--workers 0")


def test_two_runs_of_one_name_never_mix(koniq10k, tmp_path):
    command = [sys.executable, ROOT / "train_resnet_improved.py"]
    command += argv(koniq10k, tmp_path / "out", "--save_model", "--epochs", 4)
    runs = [
        subprocess.Popen(list(map(str, command)), stdout=-1, stderr=-1, text=True) for _ in range(3)
    ]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    statuses = [run.returncode for run in runs]
    assert sorted(statuses) == [0, 1, 1], errors
    for status, error in zip(statuses, errors):
        assert status == 0 or "another run is writing" in error or "is there already" in error
    lines = (tmp_path / "out" / "run.jsonl").read_text().splitlines()
    assert [json.loads(line).get("epoch") for line in lines] == [None, 1, 2, 3, 4]


@pytest.mark.parametrize("train_images, patches", [(1, 2), (2, 1), (3, 1)])
def test_the_smallest_data_sets_train(tmp_path, train_images, patches):
    folder = tmp_path / "koniq-10k"
    folder.mkdir()
    make_koniq10k(folder, train=train_images, val=0, test=1)
    (folder / "koniq10k_distributions_sets.csv").unlink()
    more = ("--train_patch_num", patches, "--test_patch_num", 1, "--batch_size", 32, "--save_model")
    out = tmp_path / "out"
    train.run(parse_args(argv(folder, out, *more)))
    _, *epochs = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    assert len(epochs) == 2 and epochs[0]["test_srcc"] is None and epochs[0]["loss"] > 0


NUMERIC = [
    "--dropout_rate",
    "--split_seed",
    "--val_fraction",
    "--patch_size",
    "--train_patch_num",
    "--test_patch_num",
    "--epochs",
    "--batch_size",
    "--lr",
    "--lr_ratio",
    "--weight_decay",
    "--seed",
    "--workers",
    "--save_minutes",
]
MAY_BE_0 = {"--dropout_rate", "--split_seed", "--val_fraction", "--lr", "--lr_ratio"}
MAY_BE_0 |= {"--weight_decay", "--seed", "--workers", "--save_minutes"}


@pytest.mark.parametrize("flag", NUMERIC)
def test_absurd_numbers_are_refused_with_the_flag_and_its_range(flag, capsys):
    absurd = ["-1", "nan", "inf", "1e30", "many", ""] + (["0"] if flag not in MAY_BE_0 else [])
    for value in absurd:
        with pytest.raises(SystemExit) as ended:
            parse_args([f"{flag}={value}"])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and f"argument {flag}" in error and "at least" in error


# No way in


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_everywhere(koniq10k, tmp_path, legacy):
    marker, path = tmp_path / "marker", tmp_path / "bad.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Malicious(marker)}))
    else:
        torch.save({"model": Malicious(marker), "config": {}, "epochs": []}, path)
    with pytest.raises(WeightsError, match="load safely"):
        load_backbone_weights(path)
    with pytest.raises(RunError, match="damaged, or not a file of tensors"):
        train.run(parse_args(argv(koniq10k, tmp_path / "out", "--resume", path)))
    assert not marker.exists()


NASTY = [
    "a b",
    "$(touch broken)",
    "`touch broken`",
    "a;touch broken",
    "-rf",
    "a\nb",
    "'\"",
    "*",
    "\u00e9",
]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_breaks_out_of_the_script(tmp_path, name):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        '#!/usr/bin/env bash\ncase $1 in *experiment.py) exec python3 "$@" ;; esac\n'
        'case "${*: -1}" in --check) exit ;; esac\n'
        'printf "%s\\0" "$@" >"$CALLS/$$"\nexit 1\n'  # its own file: a line feed parts a write
    )
    stand_in.chmod(0o755)
    work, calls = tmp_path / "work", tmp_path / "calls"
    work.mkdir()
    calls.mkdir()
    done = subprocess.run(
        ["bash", ROOT / "run_resnet_ablation.sh", "--data_path", name, "--log_dir", f"./{name}"],
        cwd=work,
        env=os.environ | {"PYTHON": str(stand_in), "CALLS": str(calls)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert [p.name for p in work.iterdir()] == [name]  # the log folder, and nothing was run
    given = "".join(call.read_text() for call in calls.iterdir()).split("\0")
    assert given.count(name) == 3 and given[given.index("--data_path") + 1] == name
