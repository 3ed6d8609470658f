"""Inputs for the sampling op, what its answers must be by definition, and the checks that hold on every device."""

import math

import torch

from zamba_lm.ops.sample import Settings, greedy, sample, uniform

KINDS = {  # arguments of Settings.put
    "greedy": {},
    "greedy, penalty": {"repetition_penalty": 1.7},
    "plain draw": {"temperature": 0.9},
    "top-k": {"temperature": 1.1, "top_k": 7},
    "top-p": {"temperature": 1.3, "top_p": 0.8},
    "min-p": {"temperature": 2.0, "min_p": 0.05},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    "encouraged": {"temperature": 0.7, "top_k": 1000, "repetition_penalty": 0.7},
}
NEAR = 1e-6  # how far float32 weights move the border between two tokens


def logits(rows, vocab, *, seed=0, dtype=torch.float32, device="cpu", scale=3.0):
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale).to(device, dtype)


def settings(n, *, kinds=tuple(KINDS), device="cpu"):
    """Slots that go through the kinds in turn, with seeds and counters that need all their bits."""
    made = Settings.empty(n, device)
    made.put_all(range(n), [{**KINDS[kinds[i % len(kinds)]], "seed": 2**64 - 1 - 977 * i, "drawn": 2**33 + i} for i in range(n)])
    return made


def poisoned(rows, device="cpu"):
    return torch.full((rows,), -7, device=device)


def probabilities(logits_V, *, temperature, top_k, top_p, min_p, repetition_penalty, seen_V=None):
    """What a row is drawn from, in float64, straight from the definition (equals of the last one kept stay)."""
    x = logits_V.double().cpu()
    if seen_V is not None:
        x = torch.where(seen_V.bool().cpu(), torch.where(x > 0, x / repetition_penalty, x * repetition_penalty), x)
    ordered, order = (x / temperature).sort(descending=True)
    if top_k:
        ordered = ordered.masked_fill(ordered < ordered[:top_k].min(), -math.inf)
    p = ordered.softmax(-1)
    if top_p < 1:
        ordered = ordered.masked_fill(ordered < ordered[p.cumsum(-1) - p < top_p].min(), -math.inf)
        p = ordered.softmax(-1)
    p = ordered.masked_fill(p < min_p * p[0], -math.inf).softmax(-1)
    return torch.zeros_like(p).scatter(0, order, p)


def row_of(made, slot):
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return {name: getattr(made, name)[slot].item() for name in names}


def assert_right(token, logits_V, row, u, seen_V):
    """``token`` is what the definition gives for the random number u, or a neighbour of it across a border u lies on."""
    greedily = row["temperature"] == 0
    p = probabilities(logits_V, **{**row, "temperature": row["temperature"] or 1.0}, seen_V=seen_V)
    if greedily:
        assert p[token] == p.max(), (token, p.argmax())
        return
    assert p[token] > 0, f"{token} is left out"
    below = p[:token].sum().item()
    assert below - NEAR <= u <= below + p[token].item() + NEAR, f"{token} holds [{below}, {below + p[token].item()}], not {u}"


def check_tokens(vocab, *, rows=8, steps=3, dtype=torch.float32, device="cpu", seen_dtype=torch.bool):
    """Every kind of row in shuffled slots: the tokens, the counters, the marks, and that other slots stay as they are."""
    n = rows + 3
    made, slots = settings(n, device=device), torch.randperm(n, generator=torch.Generator().manual_seed(vocab))[:rows].tolist()
    slots_S = torch.tensor(slots, dtype=torch.int32, device=device)
    seen = (torch.rand(n, vocab, generator=torch.Generator().manual_seed(1)) < 0.2).to(device, seen_dtype)
    for step in range(steps):
        x, ids = logits(rows, 2 * vocab, seed=step, dtype=dtype, device=device)[:, :vocab], poisoned(rows, device)
        words, marks, given = made.words_n5.clone(), seen.clone(), x.clone()
        sample(x, made, ids, seen, slots_S)
        before = Settings(words)
        for s, (slot, token) in enumerate(zip(slots, ids.tolist(), strict=True)):
            u = uniform(before.seed[slot].item(), before.drawn[slot].item())
            assert_right(token, x[s], row_of(before, slot), u, marks[slot])
            marks[slot, token] = 1
            before.drawn[slot] += before.temperature[slot] > 0
        assert torch.equal(made.words_n5, before.words_n5), "the counters, and nothing else"
        assert torch.equal(seen, marks) and torch.equal(x, given)


def check_distribution(vocab, kind, draws, *, device="cpu"):
    """Frequencies of many seeds' first draws."""
    made, x = Settings.empty(draws, device), logits(1, vocab, seed=3, device=device)
    made.put_all(range(draws), [{**KINDS[kind], "seed": seed} for seed in range(draws)])
    ids = poisoned(draws, device)
    sample(x.expand(draws, -1), made, ids)
    expected = probabilities(x[0], **row_of(made, 0))
    found = torch.bincount(ids.cpu(), minlength=vocab) / draws
    assert (found[expected == 0] == 0).all()
    spread = 5 * (expected * (1 - expected) / draws).sqrt() + 5 / draws  # a token of the smallest chance may come a few times
    assert ((found - expected).abs() <= spread).all(), ((found - expected).abs() / spread).max()


def check_neighbours(vocab, *, rows=6, device="cpu"):
    """A row alone gives what it gives in company."""
    made, x, together = settings(rows, device=device), logits(rows, vocab, device=device), poisoned(rows, device)
    words = made.words_n5.clone()
    sample(x, made, together)
    for s in range(rows):
        alone = poisoned(1, device)
        sample(x[s : s + 1], Settings(words.clone()), alone, None, torch.tensor([s], dtype=torch.int32, device=device))
        assert alone.item() == together[s].item()


def check_limits(*, draws=24, device="cpu"):
    """Settings at the ends of their ranges, on one row of logits: which tokens may come, and for two that both do."""
    x = torch.tensor([1.0, 3.0, 3.0, -math.inf, 2.0, 3e38], device=device)
    ends = [
        (x[:5], {"temperature": 1e-300}, {1, 2}),
        (x[:5], {"temperature": 1e300}, {0, 1, 2, 4}),
        (x, {"temperature": 1.0}, {5}),
        (x[:5], {"temperature": 1.0, "top_k": 1}, {1, 2}),
        (x[:5], {"temperature": 1.0, "top_k": 3}, {1, 2, 4}),
        (x[:5], {"temperature": 1.0, "top_k": 10**12}, {0, 1, 2, 4}),
        (x[:5], {"temperature": 1.0, "top_p": 1e-9}, {1, 2}),
        (x[:5], {"temperature": 1.0, "top_p": 1e-300}, {1, 2}),
        (x[:5], {"temperature": 1.0, "min_p": 1.0}, {1, 2}),
        (x[:5], {"temperature": 1.0, "min_p": 0.3}, {1, 2, 4}),
        (x[:1], {"temperature": 1.0, "top_k": 1, "top_p": 0.5}, {0}),
    ]
    for values, row, allowed in ends:
        made, ids = Settings.empty(draws, device), poisoned(draws, device)
        made.put_all(range(draws), [{**row, "seed": seed} for seed in range(draws)])
        sample(values.expand(draws, -1), made, ids)
        assert set(ids.tolist()) <= allowed and (len(allowed) > 2 or set(ids.tolist()) == allowed), (row, set(ids.tolist()))


def check_no_numbers(vocab, *, device="cpu"):
    """NaN anywhere gives -1 and marks nothing; so does an infinite highest logit in a row that is drawn."""
    x = logits(6, vocab, device=device)
    x[0, vocab - 1] = x[1, 0] = math.nan
    x[2, 1] = x[3, 1] = math.inf
    x[4] = -math.inf
    made, ids = settings(6, kinds=("plain draw", "greedy"), device=device), poisoned(6, device)
    seen = torch.zeros(6, vocab, dtype=torch.bool, device=device)
    sample(x, made, ids, seen)
    assert ids.tolist()[:5] == [-1, -1, -1, 1, -1] and ids[5] == x[5].argmax()
    assert seen.sum(-1).tolist() == [0, 0, 0, 1, 0, 1]


def check_greedy(vocab, *, rows=4, dtype=torch.float32, device="cpu"):
    """The first of equals, wherever the others lie; NaN in any place gives -1."""
    x = logits(rows, vocab + 5, dtype=dtype, device=device)[:, :vocab]
    top = x.max() + 1
    for s in range(rows):
        x[s, [vocab - 1, (s * vocab) // rows]] = top
    ids = poisoned(rows, device)
    greedy(x, ids)
    assert ids.tolist() == x.float().cpu().numpy().argmax(-1).tolist()  # the first of equals
    for place in {0, vocab // 2, vocab - 1}:
        damaged = x.clone()
        damaged[rows - 1, place] = math.nan
        greedy(damaged, ids.fill_(-7))
        assert ids[-1] == -1 and (rows == 1 or ids[0] >= 0)
    zeros = torch.zeros_like(x)
    zeros[:, 0] = -0.0
    for same in (zeros, torch.full_like(x, -math.inf)):
        greedy(same, ids.fill_(-7))
        assert (ids == 0).all()
