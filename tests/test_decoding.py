"""The decoder against the scoring forward, in all its forms, and the CPU kernel against PyTorch."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from engine_helpers import FAMILIES, make_vlm, mixed_prompts, random_responses

from common import cpu_kernel
from common.decoding import Decoder
from common.rollout import rollout

LIMIT = 70  # more than the first capacity of the buffers


def hidden_states(vlm, prompts, tokens, static, drop=None):
    """Hidden states [N, R, d] of teacher-forced tokens [N, R]; after `drop` steps only even rows go on."""
    group, out = len(tokens) // len(prompts), torch.zeros(*tokens.shape, vlm.head_weight.shape[1])
    with torch.no_grad():
        _, prefix = vlm.run_groups(prompts, vlm.encode_images(prompts), keep=True)
        starts = torch.tensor([p.next_position for p in prompts])
        decoder = Decoder(vlm.language_model, vlm.base.lm_head, prefix, starts, group, tokens.shape[1], static)
        rows = torch.arange(len(tokens))
        for t in range(tokens.shape[1]):
            if t == drop:
                keep = torch.tensor([n for n in range(len(tokens)) if n % 2 == 0 or n == 1])  # uneven groups
                decoder.keep_rows(keep)
                rows = rows[keep]
            out[rows, t] = decoder.step(tokens[rows, t])
    return out, rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kernels", ["on", "off"])
def test_a_step_equals_the_scoring_forward(monkeypatch, family, static, kernels):
    monkeypatch.setenv("SIGHTRL_KERNELS", kernels)
    vlm = make_vlm(family)
    prompts = mixed_prompts(vlm)
    tokens, mask = random_responses(vlm, [LIMIT] * 12)
    with torch.no_grad():
        whole, layout = vlm.run_groups(prompts, vlm.encode_images(prompts), tokens, mask.sum(1).tolist())
    expected = whole[layout.prompts.total :].view(12, LIMIT, -1)
    got, rows = hidden_states(vlm, prompts, tokens, static, drop=20)
    torch.testing.assert_close(got[:, :20], expected[:, :20], atol=2e-5, rtol=2e-5)
    assert len(rows) == 7
    torch.testing.assert_close(got[rows, 20:], expected[rows, 20:], atol=2e-5, rtol=2e-5)


def test_adapters_take_part():
    from peft import LoraConfig, get_peft_model

    from common.loading import LORA_TARGETS
    from common.vlm import VLM

    plain = make_vlm()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LORA_TARGETS, init_lora_weights=False)
    vlm = VLM(get_peft_model(plain.base, config), plain.tokenizer, plain.image_processor)
    prompts = mixed_prompts(vlm)[:1]
    tokens, mask = random_responses(vlm, [9, 9])
    for adapter in (True, False):
        with torch.no_grad(), vlm.reference() if not adapter else torch.enable_grad(), torch.no_grad():
            whole, layout = vlm.run_groups(prompts, vlm.encode_images(prompts), tokens, mask.sum(1).tolist())
            got, _ = hidden_states(vlm, prompts, tokens, False)
        expected = whole[layout.prompts.total :].view(2, 9, -1)
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


# ------------------------------------------------------------------------------------------------------- CPU kernel
def kernel_or_skip():
    if cpu_kernel.library() is None:
        pytest.skip("the CPU kernel cannot be built here (g++ or torch's OpenMP library is missing)")


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 16, 37])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_products_equal_the_layers(rows, bias):
    kernel_or_skip()
    layers = [torch.nn.Linear(75, out, bias=bias) for out in (64, 32, 96)]
    x = torch.randn(75, rows).T  # not contiguous
    assert cpu_kernel.packable(layers)
    expected = torch.cat([layer(x) for layer in layers], dim=1)
    torch.testing.assert_close(cpu_kernel.Packed(layers)(x), expected, atol=1e-5, rtol=1e-5)


def test_what_the_kernel_does_not_take(monkeypatch):
    kernel_or_skip()
    assert not cpu_kernel.packable([torch.nn.Linear(8, 33)])
    assert not cpu_kernel.packable([torch.nn.Linear(8, 64, dtype=torch.bfloat16)])
    assert not cpu_kernel.packable([torch.nn.Sequential(torch.nn.Linear(8, 64))])
    assert cpu_kernel.packable([torch.nn.Linear(8, 64)])
    monkeypatch.setenv("SIGHTRL_KERNELS", "off")
    assert not cpu_kernel.packable([torch.nn.Linear(8, 64)])


def test_older_processors(tmp_path):
    """Built without AVX-512, the kernel has other panels and the same results."""
    kernel_or_skip()
    openmp = next((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    library = ctypes.CDLL(str(cpu_kernel.build(openmp, tmp_path, "haswell")))
    library.sightrl_few_rows.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    width = library.sightrl_width()
    assert width == 16
    weight, x, y = torch.randn(48, 20), torch.randn(11, 20), torch.empty(11, 48)
    packed = weight.view(-1, width, 20).transpose(1, 2).contiguous()
    library.sightrl_few_rows(packed.data_ptr(), x.data_ptr(), y.data_ptr(), 11, 20, 48)
    torch.testing.assert_close(y, x @ weight.T, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    cpu_kernel.library.cache_clear()
    try:
        assert cpu_kernel.library() is None and cpu_kernel.library() is None
        assert capsys.readouterr().out.count("g++ is not installed") == 1
        assert not cpu_kernel.packable([torch.nn.Linear(8, 64)])
    finally:
        cpu_kernel.library.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_graphs_change_nothing(monkeypatch, family):
    vlm = make_vlm(family)
    vlm.model.to("cuda")
    vlm.banned_ids = vlm.banned_ids.to("cuda")
    vlm.eos_ids = [*vlm.eos_ids, *range(0, 256, 16)]  # rows end early, so that graphs are recorded again
    outs = []
    for wanted in ("on", "off"):
        monkeypatch.setenv("SIGHTRL_CUDA_GRAPHS", wanted)
        generator = torch.Generator().manual_seed(0)
        outs.append(rollout(vlm, mixed_prompts(vlm), 8, max_new_tokens=2 * LIMIT, generator=generator))
    assert torch.equal(outs[0].tokens, outs[1].tokens)
    torch.testing.assert_close(outs[0].logps, outs[1].logps, atol=1e-5, rtol=1e-5)
