"""The CUDA kernels: same numbers as PyTorch. Compiled by g++ to run on the CPU here; on the GPU where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from common import grpo, kernels
from common.logprob import token_logps

ROOT = Path(__file__).parents[1]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, so the kernels cannot be run on the CPU")
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    sources = [str(p) for p in sorted((ROOT / "common" / "csrc").glob("*.cu"))]
    command = ["g++", "-x", "c++", "-std=c++20", "-O1", "-DBLOCK=4", "-include", str(ROOT / "tests" / "cuda_on_cpu.h"),
               "-shared", "-fPIC", "-pthread", "-o", str(path), *sources]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if "barrier" in done.stderr and "No such file" in done.stderr:
        pytest.skip("this g++ has no C++20 <barrier>")
    assert done.returncode == 0, done.stderr
    return kernels.load(path)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The device whose tensors the kernels take in this test; on the CPU they are the g++ build."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        if kernels.library() is None:
            pytest.skip("the kernels could not be built (no nvcc?)")
    else:
        library = request.getfixturevalue("cpu_library")
        monkeypatch.setattr(kernels, "library", lambda: library)
    return request.param


def switch(monkeypatch, on):
    monkeypatch.setattr(kernels, "usable", lambda tensor: on)


def head_results(monkeypatch, on, dtype, device, vocab, temperature, entropy, seed=0, scale=1.0):
    """(logps, entropies, gradient of hidden, of weight) with or without the kernels."""
    switch(monkeypatch, on)
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(13, 16, generator=g) * scale).to(device, dtype).requires_grad_()
    weight = torch.randn(vocab, 16, generator=g).to(device, dtype).requires_grad_()
    targets = torch.randint(0, vocab, (13,), generator=g).to(device)
    banned = torch.tensor([0, vocab // 2], device=device)
    targets[(targets == 0) | (targets == vocab // 2)] = vocab - 1
    logps, entropies = token_logps(hidden, weight, targets, banned, temperature, entropy)
    loss = (logps * torch.linspace(-1, 1, 13, device=device)).sum()
    if entropy == "grad":
        loss = loss + (entropies * torch.linspace(1, -0.5, 13, device=device)).sum()
    loss.backward()
    return [x.detach().float().cpu() for x in (logps, entropies, hidden.grad, weight.grad)]


@pytest.mark.parametrize("entropy", [True, "grad"])
@pytest.mark.parametrize(("vocab", "temperature"), [(3, 1.0), (64, 0.7), (1001, 0.7), (1536, 1.0)])  # 1001: odd rows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_equals_pytorch(monkeypatch, device, dtype, vocab, temperature, entropy):
    plain = head_results(monkeypatch, False, dtype, device, vocab, temperature, entropy)
    fused = head_results(monkeypatch, True, dtype, device, vocab, temperature, entropy)
    for a, b in zip(fused[:2], plain[:2], strict=True):  # statistics are float32 whatever the logits are
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}[dtype]  # one rounding of the gradient
    for a, b in zip(fused[2:], plain[2:], strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


def test_head_with_extreme_logits(monkeypatch, device):
    """Logits of several hundred: no overflow, and the entropy of a certain choice is 0."""
    plain = head_results(monkeypatch, False, torch.float32, device, 1001, 1.0, "grad", scale=100.0)
    fused = head_results(monkeypatch, True, torch.float32, device, 1001, 1.0, "grad", scale=100.0)
    assert all(x.isfinite().all() for x in fused)
    torch.testing.assert_close(fused[0], plain[0], atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(fused[1], plain[1], atol=1e-4, rtol=1e-4)


def test_nan_logits_stay_visible(monkeypatch, device):
    switch(monkeypatch, True)
    hidden, weight = torch.ones(2, 4, device=device), torch.ones(9, 4, device=device)
    hidden[1, 2] = torch.nan
    none = torch.zeros(0, dtype=torch.long, device=device)
    logps, entropy = token_logps(hidden, weight, torch.tensor([1, 1], device=device), none)
    assert logps[0].item() == pytest.approx(-torch.tensor(9.0).log().item(), abs=1e-6)
    assert logps[1].isnan() and entropy[1].isnan()


def test_chunks_and_no_rows(monkeypatch, device):
    switch(monkeypatch, True)
    monkeypatch.setattr("common.logprob.CHUNK_ELEMENTS", {"cpu": 5 * 64, "cuda": 5 * 64})  # 5 rows a chunk, the last 3
    fused = head_results(monkeypatch, True, torch.float32, device, 64, 1.0, "grad")
    plain = head_results(monkeypatch, False, torch.float32, device, 64, 1.0, "grad")
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    switch(monkeypatch, True)
    none = torch.zeros(0, dtype=torch.long, device=device)
    logps, _ = token_logps(torch.zeros(0, 4, device=device), torch.ones(9, 4, device=device), none, none)
    assert logps.shape == (0,)


# ------------------------------------------------------------------------------------------------------- policy loss
def policy_case(seed, device, spread):
    g = torch.Generator().manual_seed(seed)
    n, T = 6, 21
    old = -torch.rand(n, T, generator=g) * 3
    logps = old + torch.randn(n, T, generator=g) * spread
    ref = old + torch.randn(n, T, generator=g) * spread
    advantages = torch.randn(n, generator=g)
    advantages[0] = 0.0
    lengths = torch.randint(1, T + 1, (n, 1), generator=g)
    mask = torch.arange(T) < lengths
    mask[1] = False  # a truncated response, masked altogether
    return [x.to(device) for x in (logps, old, ref, advantages, mask)]


@pytest.mark.parametrize("kl", [None, "k1", "k2", "k3"])
@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 15.0])  # on-policy, clipped, dual-clipped, beyond the clamps
def test_policy_loss_equals_the_formulas(device, spread, dual_clip, kl):
    for seed in range(3):
        logps, old, ref, A, mask = policy_case(seed, device, spread)
        mine, theirs = logps.clone().requires_grad_(), logps.clone().double().requires_grad_()
        weights = torch.full_like(A, 1 / int(mask.sum()))  # token_mean
        coefficient = 0.04 if kl else 0.0
        loss, sums = kernels.policy_loss(mine, old, ref if kl else None, A, mask, weights, 0.2, 0.28, dual_clip,
                                         coefficient, kl or "k3")  # fmt: skip
        (2 * loss).backward()
        ratio = grpo.token_log_ratio(theirs, old.double())
        losses = grpo.clipped_loss(ratio, A.double()[:, None], 0.2, 0.28, dual_clip)
        if kl:
            divergence = grpo.kl_estimate(theirs, ref.double(), kl)
            losses = losses + coefficient * divergence
            expected = (divergence * mask).sum(1).detach()
            torch.testing.assert_close(sums[:, 1].double(), expected, rtol=1e-4, atol=1e-4)
        truth = grpo.aggregate(losses, mask, "token_mean")
        (2 * truth).backward()
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
        inside = logps != old  # at ratio 1 exactly both branches of the max are equal: the sums agree
        scale = theirs.grad.abs().max().clamp(min=1e-9)
        assert ((mine.grad - theirs.grad)[inside].abs().max() if inside.any() else 0) <= 1e-4 * scale
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-7 + 1e-5 * scale.item())
        below, above = grpo.clipped_tokens(ratio.float(), A[:, None], 0.2, 0.28)
        assert sums[:, 2].tolist() == (below & mask).sum(1).tolist()
        assert sums[:, 3].tolist() == (above & mask).sum(1).tolist()


# ------------------------------------------------------------------------------------------------------------- building
def test_nvcc_compiles_for_two_generations(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    path = kernels.build(["80", "90"], tmp_path)
    assert path == kernels.build(["80", "90"], tmp_path), "the second build must come from the cache"
    assert list(tmp_path.iterdir()) == [path], "no scratch files may stay"


def test_without_nvcc_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None and kernels.library() is None
    finally:
        kernels.library.cache_clear()
    assert capsys.readouterr().out == (
        "CUDA kernels are off, PyTorch does their work: nvcc is not installed (looked in PATH and CUDA_HOME)\n"
    )


def test_compiler_errors_are_told(monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'logps.cu: too clever' >&2\nexit 2\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(RuntimeError, match="nvcc failed: logps.cu: too clever"):
        kernels.build(["90"], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
