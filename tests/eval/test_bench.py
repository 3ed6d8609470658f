"""Whole runs on tiny shapes: the document, the registry, refusals, sizes named before anything is allocated."""

import json
from dataclasses import fields, replace

import pytest
import torch

from tests.eval.tiny import PRESETS, tiny  # noqa: F401
from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import cases, costs, decoder, peer, subject
from zamba_lm.eval.bench.cases import CASES, Case, find
from zamba_lm.eval.bench.clock import Spread, measure, measure_answer
from zamba_lm.eval.bench.costs import Cost
from zamba_lm.eval.bench.job import Options, run, whole_numbers
from zamba_lm.eval.bench.report import KEYS, Row
from zamba_lm.eval.bench.roof import Roof
from zamba_lm.eval.bench.subject import choose, first_layers, require_room
from zamba_lm.model.presets import PRESETS as PUBLISHED
from zamba_lm.ops.dispatch import table

CPU = torch.device("cpu")
TINY = {"preset": "tiny", "random": True, "dtype": "fp32", "repeats": 2, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Rates are measured once elsewhere; here they are given. Rounds are short."""
    monkeypatch.setattr(Roof, "of", classmethod(lambda cls, device, dtype: cls(1e9, 1e10, 100, 8, "float32")))
    monkeypatch.setattr("zamba_lm.eval.bench.clock.ROUND", 0.001)


def bench(kind, **options):
    return run(Options(**TINY | {"kind": kind} | options))


# whole runs


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["decode", "prefill", "train-step"])
def test_against_transformers(kind, preset):
    report = bench(kind, preset=preset, batch="1,2", context="7", against="transformers")
    assert report.agreement.ok, report.agreement.reason
    assert report.agreement.exact == "float64" and report.agreement.ours < 1e-5
    assert [(r.side, r.batch, r.context) for r in report.rows] == [
        (side, batch, 7) for batch in (1, 2) for side in ("zamba-lm", "transformers")
    ]
    for ours, theirs in zip(report.rows[::2], report.rows[1::2], strict=True):
        assert ours.speed_up == theirs.seconds.median / ours.seconds.median and theirs.speed_up is None
        assert 0 < ours.seconds.low <= ours.seconds.median <= ours.seconds.high
        assert ours.tokens_per_second == pytest.approx(ours.tokens / ours.seconds.median)


@pytest.mark.parametrize("kind", ["decode", "train-step"])
def test_no_speed_up_when_outputs_disagree(kind, monkeypatch):
    build = peer.build

    def other(model):
        theirs = build(model)
        theirs.model.final_layernorm.weight = torch.nn.Parameter(1.5 - theirs.model.final_layernorm.weight.detach(), False)
        next(iter(theirs.model.layers)).input_layernorm.weight.data = torch.randn(model.config.d_model)
        return theirs

    monkeypatch.setattr(peer, "build", other)
    report = bench(kind, preset="tiny-v1", context="5", against="transformers")
    assert not report.agreement.ok and "logits are off by" in report.agreement.reason
    assert [row.speed_up for row in report.rows] == [None, None]
    assert all(row.seconds for row in report.rows)


def test_no_speed_up_when_decoding_goes_astray(monkeypatch):
    """Logits of whole passes agree, and what the timed route writes does not."""

    class Astray(peer.TheirDecoder):
        def tokens(self):
            return (super().tokens() + 1) % PRESETS["tiny"].vocab_size

    monkeypatch.setattr(peer, "TheirDecoder", Astray)
    report = bench("decode", context="5", against="transformers")
    assert not report.agreement.ok and "their greedy tokens" in report.agreement.reason
    assert report.rows[0].speed_up is None


def test_no_speed_up_without_an_exact_pass(monkeypatch):
    monkeypatch.setattr("zamba_lm.eval.bench.exact.free_bytes", lambda device: 10)
    report = bench("decode", context="5", against="transformers")
    assert not report.agreement.ok and "no room" in report.agreement.reason and report.rows[0].speed_up is None


@pytest.mark.parametrize("kind", ["decode", "prefill", "train-step", "kernels"])
def test_the_document_is_json(kind):
    document = json.loads(json.dumps(bench(kind, context="4", op="norm,linear").plain(), allow_nan=False))
    assert tuple(document) == KEYS and document["schema"] == 1 and document["kind"] == kind
    assert document["model"]["parameters"] == PRESETS["tiny"].n_params() and document["peer"] is None
    row = document["rows"][0]
    assert row["seconds"]["median"] > 0 and row["cost"]["bytes"] > 0 and 0 < row["copy_share"] and row["matrix_share"] > 0
    if kind != "kernels":
        assert {field.name for field in fields(Row)} < set(row)


def test_recomputation_gives_the_same_gradients_and_is_undone(monkeypatch):
    from zamba_lm.eval.bench import whole

    seen = []
    measure_once = lambda work, device, repeats: (work(), seen.append(_gradients(work)))[0] or Spread.of([1.0])  # noqa: E731
    monkeypatch.setattr(whole, "measure", measure_once)
    bench("train-step", context="9", recompute=False)
    report = bench("train-step", context="9", recompute=True)
    assert report.rows[0].note == "with recomputation"
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)


def _gradients(step):
    model = step.__closure__[step.__code__.co_freevars.index("model")].cell_contents
    return [p.grad.clone() for p in model.parameters()]


def test_a_prompt_without_room_is_a_row(monkeypatch):
    def full(self, ids):
        raise decoder.NoRoom("the prompt of 5 tokens does not fit")

    monkeypatch.setattr(decoder.EngineDecoder, "start", full)
    row = bench("decode", context="5").rows[0]
    assert row.seconds is None and row.note == "the prompt of 5 tokens does not fit"


def test_a_batch_that_the_engine_would_split_is_a_row_too(monkeypatch):
    from zamba_lm.engine.engine import Engine

    def cut(self):
        self.pool.max_slots = 1
        return []

    monkeypatch.setattr(Engine, "step", cut)
    row = bench("decode", batch="2", context="5").rows[0]
    assert row.seconds is None and row.note == "2 sequences of this length do not fit into memory together"


def test_a_forced_backend_is_what_ran_and_ends_with_the_run():
    report = bench("decode", context="4", backend="reference")
    assert set(report.device["ops"].values()) == {"reference"}
    assert all(why != "forced" for _, _, why in table("cpu"))


def test_first_layers_only():
    report = bench("decode", preset="tiny", layers=2, context="4")
    assert report.model["name"] == "tiny (first 2 layers)" and report.model["layers"] == 2
    assert report.model["parameters"] == first_layers(PRESETS["tiny"], 2).n_params() < PRESETS["tiny"].n_params()


def test_a_checkpoint_is_cut_as_a_preset_is(tmp_path):
    from zamba_lm.model.zamba import Zamba

    Zamba(PRESETS["tiny"]).init_weights(3).save(tmp_path)
    whole = choose(None, False, str(tmp_path), 2, CPU, "fp32", 0)
    model = whole.build()
    assert model.config == whole.config() and len(model.layers) == 2 and len(model.blocks) == model.config.n_blocks
    assert model.logits(torch.tensor([[1, 2, 3]])).isfinite().all()


# the registry


def test_the_table_of_the_issue_is_there():
    assert len(CASES) == 15 and len({case.name for case in CASES}) == 15
    assert {case.kind for case in CASES} == {"decode", "prefill", "train-step", "start"}
    assert all(case.preset in PUBLISHED and case.reach > 0 for case in CASES)
    assert all(case.hf is None or case.reach < case.hf for case in CASES)
    best = find("decode", "zamba2-2.7b", 1, 512)
    assert (best.reach, best.hf, best.vllm) == pytest.approx((2.1e-3, 79.9e-3, 3.64e-3))
    assert find("decode", "zamba2-2.7b", 256, 512, "bfloat16").reach == pytest.approx(15e-3)
    assert find("prefill", "zamba2-2.7b", 1, 16384).peak == 9.5e9
    assert find("prefill", "zamba2-2.7b", 1, 16384, merge=False).name.endswith("nothing merged")
    assert find("train-step", "zamba-7b-v1", 1, 4096) is None and find("train-step", "zamba-7b-v1", 1, 4096, recompute=True)


@pytest.mark.parametrize(
    ("case", "limit_ms"),
    [
        (("decode", "zamba2-2.7b", 1, 512), 1.88),
        (("decode", "zamba2-2.7b", 1, 16384), 2.6),
        (("decode", "zamba2-2.7b", 32, 512), 3.6),
        (("decode", "zamba2-2.7b", 256, 512), 16.4),
        (("decode", "zamba-7b-v1", 1, 512), 5.5),
        (("decode", "zamba-7b-v1", 32, 512), 7.7),
        (("prefill", "zamba2-2.7b", 1, 2048), 20),
        (("prefill", "zamba2-2.7b", 1, 16384), 190),
        (("prefill", "zamba-7b-v1", 1, 2048), 59),
        (("prefill", "zamba-7b-v1", 1, 16384), 540),
        (("train-step", "zamba2-2.7b", 1, 4096), 4096 / 34.5 * 1.06),  # attention counts here
    ],
)
def test_limits_are_those_of_the_issue(case, limit_ms):
    """At 4225 GB/s and 801 TFLOP/s."""
    kind, preset, batch, context = case
    cost = getattr(costs, kind.replace("-", "_"))(PUBLISHED[preset], batch, context, "bfloat16")
    assert cost.limit(4225e9, 801e12) * 1e3 == pytest.approx(limit_ms, rel=0.03)


def test_a_case_belongs_to_its_card_and_its_whole_model(monkeypatch):
    monkeypatch.setattr(cases, "CASES", (Case(kind="decode", preset="tiny", context=4, reach=1e9),))
    assert bench("decode", context="4").rows[0].case is None
    monkeypatch.setattr("zamba_lm.eval.bench.sides.DEVICE", "CPU")
    row = bench("decode", context="4").rows[0]
    assert row.case.name == "decode tiny 1 x 4" and row.reached
    assert bench("decode", context="4", layers=3).rows[0].case is None


# what users get wrong


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "zamba2-2.8b"}, "unknown preset 'zamba2-2.8b'.*zamba2-2.7b"),
        ({"random": False}, "--preset tiny is a shape without weights: add --random"),
        ({"preset": None}, "--random draws weights for a published shape"),
        ({"model": "x"}, "--preset tiny and --model x both name a model"),
        ({"batch": "1,x"}, "--batch '1,x': expected whole numbers"),
        ({"batch": "0"}, "--batch '0'"),
        ({"context": "1,,2"}, "--context '1,,2'"),
        ({"context": "-5"}, "--context '-5'"),
        ({"against": "vllm"}, "--against 'vllm': expected transformers"),
        ({"layers": 9}, "--layers 9: the model has 4"),
        ({"repeats": 0}, "--repeats 0"),
        ({"state_dtype": "fp16"}, "--state-dtype 'fp16': expected fp32 or bf16"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"device": "gpu0"}, "unknown device 'gpu0'"),
        ({"backend": "triton"}, "cannot run as triton on cpu"),
    ],
)
def test_a_mistake_is_one_line(options, said):
    with pytest.raises(ZambaError, match=said) as raised:
        bench("decode", **options)
    assert "\n" not in str(raised.value)


def test_a_device_too_small_is_told_with_the_sizes(monkeypatch):
    monkeypatch.setattr(subject, "free_bytes", lambda device: 4 * 10**9)
    config = PUBLISHED["zamba2-2.7b"]
    with pytest.raises(ZambaError, match=r"need 6\.0 GB in bfloat16 \(5\.3 GB are weights\), and cpu has 4\.0 GB free"):
        require_room(config, CPU, "bfloat16", (1,), (512,))
    with pytest.raises(ZambaError, match=r"gradients need 11\.\d GB"):
        require_room(config, CPU, "bfloat16", (1,), (512,), training=True)
    monkeypatch.setattr(subject, "free_bytes", lambda device: 6.1 * 10**9)
    require_room(config, CPU, "bfloat16", (1,), (512,))
    with pytest.raises(ZambaError, match="state of 32 x 512 tokens"):
        require_room(config, CPU, "bfloat16", (1, 32), (512,))


def test_nothing_is_built_on_a_device_too_small(monkeypatch):
    monkeypatch.setattr(subject, "free_bytes", lambda device: 10)
    monkeypatch.setattr(subject.Subject, "build", lambda self: pytest.fail("built"))
    with pytest.raises(ZambaError, match="GB free"):
        bench("decode")


def test_lists_keep_their_order_and_drop_repeats():
    assert whole_numbers("--batch", "32, 1,32") == (32, 1)


# clocks


def test_medians_of_rounds():
    assert Spread.of([3.0, 1.0, 2.0], 7) == Spread(2.0, 1.0, 3.0, 3, 7)
    calls = []
    spread = measure(lambda: calls.append(1), CPU, 3)
    assert spread.rounds == 3 and len(calls) == 2 + 3 * spread.calls and spread.median > 0


def test_an_answer_is_timed_call_by_call():
    order = []
    spread = measure_answer(lambda: order.append("work"), CPU, 2, lambda: order.append("between"))
    assert order == ["between", "work"] * 4 and (spread.rounds, spread.calls) == (2, 1)


def test_a_share_of_the_limit():
    row = Row(side="zamba-lm", batch=1, context=1, seconds=Spread.of([0.5]), tokens=4, cost=Cost(100, 10), limit=0.1)
    assert row.of_limit == pytest.approx(0.2) and row.share(100, 400) == pytest.approx(0.5) and row.tokens_per_second == 8
    assert replace(row, seconds=None).of_limit is None
