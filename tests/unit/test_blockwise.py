"""Blockwise and ring attention against dense attention: results, gradients, what is kept."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from latentplan.errors import ConfigError, ShapeError
from latentplan.nn import blockwise as module
from latentplan.nn.blockwise import blockwise, blockwise_attention
from latentplan.nn.ring import ring_attention, shard, take

FORWARD, GRADIENT = 1e-5, 1e-4  # largest difference
CASES = [  # length, block, packed
    (64, 1, False),
    (61, 1, False),
    (61, 1, True),
    (60, 6, False),
    (63, 6, True),
    (37, 0, True),
]


def inputs(length, *, packed, seed=0):
    """Return q, k, v and the gradient of the result (2, 3, L, 8), and segment ids."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = torch.randn(4, 2, 3, length, 8, generator=generator)
    cuts = torch.tensor([[5, 23], [17, 18]])
    segments = (torch.arange(length)[None, None] >= cuts[..., None]).sum(1) if packed else None
    return [q, k, v], grad, segments


def dense(q, k, v, block, segments):
    at = torch.arange(q.shape[2])
    allowed = torch.ones(len(at), len(at), dtype=torch.bool)
    if block:
        allowed = at[None] // block <= at[:, None] // block
    if segments is not None:
        allowed = allowed & (segments[:, None, :, None] == segments[:, None, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def gradients(attention, tensors, grad):
    leaves = [each.clone().requires_grad_() for each in tensors]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_near(found, wanted):
    for each, true, most in zip(found, wanted, (FORWARD, *[GRADIENT] * 3), strict=True):
        assert (each - true).abs().max() < most


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("length", "block", "packed"), CASES)
def test_blockwise_is_dense_attention(length, block, packed, fused, monkeypatch):
    if not fused:  # as on other devices than the CPU
        monkeypatch.setattr(module, "attend", module.attend_written_out)
        monkeypatch.setattr(module, "attend_backward", module.backward_written_out)
    tensors, grad, segments = inputs(length, packed=packed)
    wanted = gradients(lambda *x: dense(*x, block, segments), tensors, grad)
    for chunk in (16, 1000):
        chosen = {"chunk": chunk, "block": block, "segments": segments}
        found = gradients(lambda *x: blockwise_attention(*x, **chosen), tensors, grad)  # noqa: B023
        assert_near(found, wanted)


def recording(kept):
    """Return hooks that note the size of each tensor that a graph keeps."""
    return lambda x: kept.append(x.numel()) or x, lambda x: x


def test_chunks_above_the_diagonal_are_skipped(monkeypatch):
    calls = []
    real = module.attend
    monkeypatch.setattr(module, "attend", lambda *x: calls.append(1) or real(*x))
    tensors, _, _ = inputs(64, packed=False)
    blockwise_attention(*tensors, chunk=16)
    assert len(calls) == 4 * 5 // 2


def test_the_graph_keeps_nothing_of_the_size_of_the_scores():
    kept = []
    tensors, _, segments = inputs(256, packed=True)
    q = tensors[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(*recording(kept)):
        blockwise_attention(q, *tensors[1:], chunk=32, segments=segments)
    assert max(kept) == q.numel()


def ring_rank(rank, world, file, cases, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    for length, block, packed, layout in cases:
        tensors, grad, segments = inputs(length, packed=packed)
        mine = shard(length, rank, world, layout=layout)
        local = [take(each, mine, dim=2) for each in (*tensors, grad)]
        ids = None if segments is None else take(segments, mine, dim=1)
        chosen = {"length": length, "layout": layout, "chunk": 9, "block": block, "segments": ids}
        results.put(
            (rank, [x.numpy() for x in gradients(
                lambda *x: ring_attention(*x, **chosen), local[:3], local[3]  # noqa: B023
            )])
        )  # fmt: skip
    with pytest.raises(ShapeError, match="rank . of 2, need .B, heads, 32, d.: the zigzag shard"):
        ring_attention(*inputs(31, packed=False)[0], length=64)
    dist.destroy_process_group()


def test_a_ring_of_two_processes_is_dense_attention(tmp_path):
    cases = [(*case, layout) for case in CASES for layout in ("zigzag", "plain")]
    context = mp.get_context("fork")
    results = context.SimpleQueue()
    args = [(rank, 2, tmp_path / "ring", cases, results) for rank in range(2)]
    processes = [context.Process(target=ring_rank, args=each) for each in args]
    for each in processes:
        each.start()
    found = {0: [], 1: []}
    for _ in range(2 * len(cases)):
        rank, tensors = results.get()
        found[rank].append([torch.from_numpy(x) for x in tensors])
    for each in processes:
        each.join()
        assert each.exitcode == 0
    for index, (length, block, packed, layout) in enumerate(cases):
        tensors, grad, segments = inputs(length, packed=packed)
        wanted = gradients(lambda *x: dense(*x, block, segments), tensors, grad)  # noqa: B023
        for rank in range(2):
            mine = shard(length, rank, 2, layout=layout)
            assert_near(found[rank][index], [take(each, mine, dim=2) for each in wanted])


def test_shards_are_all_positions_once_and_zigzag_balances_causal_work():
    for length, world in ((64, 4), (61, 3)):
        for layout in ("zigzag", "plain"):
            shards = [shard(length, r, world, layout=layout) for r in range(world)]
            assert sorted(p for each in shards for part in each for p in part) == [*range(length)]
    work = [sum(p for part in shard(64, r, 4) for p in part) for r in range(4)]
    assert len(set(work)) == 1


def test_a_feed_forward_in_chunks_is_the_whole_one_and_keeps_only_its_input():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.SiLU(), torch.nn.Linear(32, 8))
    x = torch.randn(2, 21, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(*recording(kept)):
        out = blockwise(layer, x, chunk=4)
    assert max(kept, default=0) <= x.numel()
    found = torch.autograd.grad(out.sum(), [x, *layer.parameters()])
    wanted = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    for each, true in zip(found, wanted, strict=True):
        assert torch.allclose(each, true, atol=1e-5)


def test_bad_input_is_one_line():
    tensors, _, _ = inputs(8, packed=False)
    empty = [each[:, :, :0] for each in tensors]
    wrong = [
        (ShapeError, "need three .B, heads, L >= 1, d.", lambda: blockwise_attention(*empty)),
        (ConfigError, "chunk", lambda: blockwise_attention(*tensors, chunk=0)),
        (ShapeError, "segments: found shape .2, 9., need .2, 8.",
         lambda: blockwise_attention(*tensors, segments=torch.zeros(2, 9))),
        (ConfigError, "8 ranks cut a sequence into 16 pieces .zigzag., found 8 positions",
         lambda: shard(8, 0, 8)),
        (ConfigError, "ring.layout: found 'striped'", lambda: shard(8, 0, 2, layout="striped")),
    ]  # fmt: skip
    for error, said, call in wrong:
        with pytest.raises(error, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
