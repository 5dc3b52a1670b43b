"""Which device computes, in which precision and memory layout."""

import os

import pytest
import torch

import data_loader as data
import devices
from errors import RunError


def test_mps_where_there_is_none_is_refused():
    if torch.backends.mps.is_available():
        pytest.skip("there is a GPU of Apple")
    with pytest.raises(RunError, match="--device mps: PyTorch sees no GPU of Apple here"):
        devices.choose_device("mps")


def test_auto_never_takes_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto").type in ("cuda", "cpu")
    assert devices.choose_device("mps").type == "mps"


def test_mps_computes_in_float32_and_not_in_channels_last():
    mps, cpu = torch.device("mps"), torch.device("cpu")
    assert devices.choose_precision("auto", mps) == devices.choose_precision("off", mps) == "off"
    with pytest.raises(RunError, match="--amp bf16: --device mps computes in float32"):
        devices.choose_precision("bf16", mps)
    assert devices.memory_format(mps) is torch.contiguous_format
    assert devices.memory_format(cpu) is torch.channels_last


def test_a_store_stays_on_the_host_beside_mps():
    store = object()
    assert data.place_store(store, "auto", torch.device("mps")) is store
    with pytest.raises(RunError, match="--store_device cuda: this run is on mps"):
        data.place_store(store, "cuda", torch.device("mps"))


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    assert devices.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert devices.cores() == os.cpu_count()
