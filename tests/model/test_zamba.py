"""One function, many routes: however the tokens reach the model, the logits are the same, and nothing leaks between sequences."""

from functools import cache

import pytest
import torch

from tests.model.tiny import CONFIGS, FAMILIES, VOCAB, model, random_ids, random_model, text
from tests.numerics.tolerances import TOLERANCES, assert_within
from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.names import parameter_shapes
from zamba_lm.model.zamba import Zamba

LENGTHS = (1, 2, 63, 64, 65, 300)  # around a chunk of the scans, and several
TOLERANCE = TOLERANCES["paths", torch.float32][0]


@cache
@torch.inference_mode()
def whole(name, length):
    """The route that the others are held against, itself held against transformers in tests/parity."""
    return model(name).logits(text(length)[None])[0]


# routes: (model, ids_T) -> logits_TV


def in_parts(zamba, ids, *cuts):
    """One state, continued from cut to cut."""
    state = zamba.new_state(1)
    ends = [cut for cut in cuts if 0 < cut < len(ids)] + [len(ids)]
    return torch.cat([zamba.logits(ids[None, start:end], state)[0] for start, end in zip([0, *ends], ends, strict=False)])


def single_steps(zamba, ids):
    return in_parts(zamba, ids, *range(1, len(ids)))


def prompt_then_steps(zamba, ids):
    return in_parts(zamba, ids, *range(len(ids) * 2 // 3, len(ids)))


def first_token_then_rest(zamba, ids):
    return in_parts(zamba, ids, 1)


def rest_then_last_token(zamba, ids):
    return in_parts(zamba, ids, len(ids) - 1)


def chunks_of_7(zamba, ids):
    return in_parts(zamba, ids, *range(7, len(ids), 7))


def chunks_of_64(zamba, ids):
    return in_parts(zamba, ids, *range(64, len(ids), 64))


def chunks_and_steps_mixed(zamba, ids):
    return in_parts(zamba, ids, 2, 3, 4, 40, 41, 105, 233, 234)


def whole_into_a_state(zamba, ids):
    return in_parts(zamba, ids)


def packed_with_others(zamba, ids):
    others = [random_ids(n, seed=50 + n).tolist() for n in (5, 1, 70)]
    logits = zamba(Batch.pack([others[0], others[1], ids.tolist(), others[2]]))
    return logits[6 : 6 + len(ids)]


def packed_with_others_into_a_state(zamba, ids):
    others = [random_ids(n, seed=60 + n).tolist() for n in (1, 9)]
    logits = zamba(Batch.pack([ids.tolist(), *others]), zamba.new_state(3))
    return logits[: len(ids)]


def packed_by_cumulative_lengths(zamba, ids):
    other = random_ids(3, seed=70)
    batch = Batch.from_cu_seqlens(torch.cat([other, ids]), torch.tensor([0, 3, 3 + len(ids)], dtype=torch.int32))
    return zamba(batch)[3:]


def batched(zamba, ids):
    rows = torch.stack([random_ids(len(ids), seed=80), ids, random_ids(len(ids), seed=81)])
    return zamba.logits(rows)[1]


def batched_steps(zamba, ids):
    rows, state = torch.stack([random_ids(len(ids), seed=82), ids]), zamba.new_state(2)
    return torch.cat([zamba.logits(rows[:, at : at + 1], state)[1] for at in range(len(ids))])


def padded_on_the_right(zamba, ids):
    rows = random_ids(2, len(ids) + 11, seed=83)
    rows[0, : len(ids)] = ids
    return zamba.logits(rows)[0, : len(ids)]


ROUTES = (
    single_steps,
    prompt_then_steps,
    first_token_then_rest,
    rest_then_last_token,
    chunks_of_7,
    chunks_of_64,
    chunks_and_steps_mixed,
    whole_into_a_state,
    packed_with_others,
    packed_with_others_into_a_state,
    packed_by_cumulative_lengths,
    batched,
    batched_steps,
    padded_on_the_right,
)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_every_route_leads_to_the_same_logits(name, length, route):
    assert_within("paths", route(model(name), text(length)), whole(name, length))


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_text_longer_than_any_span_of_an_op(name):
    ids = text(2100)
    assert_within("paths", in_parts(model(name), ids, 700, 1400), whole(name, 2100))


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_sequences_of_different_ages_go_on_together(name):
    """As an engine does it: each pass gives every sequence some tokens, one of them, or a first prompt, in one packed batch."""
    zamba, ids = model(name), [text(length) for length in (65, 64, 63)]
    state, done, parts = zamba.new_state(3), [0, 0, 0], [[], [], []]
    for counts in ((30, 1, 3), (1, 1, 1), (1, 20, 1), (2, 1, 1), (1, 1, 1), (30, 40, 56)):
        chunks = [one[at : at + n].tolist() for one, at, n in zip(ids, done, counts, strict=True)]
        for part, logits in zip(parts, zamba(Batch.pack(chunks), state).split(counts), strict=True):
            part.append(logits)
        done = [at + n for at, n in zip(done, counts, strict=True)]
    assert done == state.lengths == [65, 64, 63]
    for part, length in zip(parts, done, strict=True):
        assert_within("paths", torch.cat(part), whole(name, length))


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_last_only_is_the_last_of_all(name, stateful):
    zamba, batch = model(name), Batch.pack([text(5).tolist(), text(1).tolist(), text(9).tolist()])
    state = zamba.new_state(3) if stateful else None
    logits = zamba(batch, state, last_only=True)
    assert logits.shape == (3, VOCAB) and logits.dtype == torch.float32
    for row, length in zip(logits, (5, 1, 9), strict=True):
        assert_within("paths", row, whole(name, length)[-1])


# nothing leaks


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_no_token_sees_a_later_one(name):
    zamba, ids = model(name), text(70)
    changed = ids.clone()
    changed[40] = (changed[40] + 1) % VOCAB
    before, after = zamba.logits(ids[None])[0], zamba.logits(changed[None])[0]
    assert torch.equal(before[:40], after[:40])
    assert ((after - before)[40:45].abs().amax(-1) > 100 * TOLERANCE).all(), "and every later one sees it"


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("lengths", [(9, 12, 9), (1, 1, 1), (7, 7, 7), (1, 40, 1)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_no_sequence_sees_another(name, lengths, stateful):
    """Other neighbours, bit for bit the same answer."""
    zamba = model(name)
    answers = []
    for seed in (1, 2):
        first, last = (random_ids(lengths[i], seed=10 * seed + i).tolist() for i in (0, 2))
        state = zamba.new_state(3) if stateful else None
        logits = zamba(Batch.pack([first, random_ids(lengths[1], seed=99).tolist(), last]), state)
        answers.append(logits.split(lengths)[1])
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_pass_leaves_the_model_and_its_input_alone(name):
    zamba, ids = model(name), text(9)
    before, given = [p.clone() for p in zamba.parameters()], ids.clone()
    first = zamba.logits(ids[None], zamba.new_state(1))
    assert torch.equal(zamba.logits(ids[None], zamba.new_state(1)), first)
    assert torch.equal(ids, given) and all(map(torch.equal, before, zamba.parameters()))


# mistakes


@pytest.mark.parametrize("bad", [-1, VOCAB, 10**6])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_id_outside_the_vocabulary_is_named(name, bad):
    zamba = model(name)
    state = zamba.new_state(1)
    with pytest.raises(ZambaError, match=rf"token id {bad} is outside the vocabulary of {VOCAB}"):
        zamba.logits(torch.tensor([[3, bad, 5]]), state)
    assert state.lengths == [0] and not state.ssm.any(), "and nothing is remembered of it"


def test_the_edges_of_the_vocabulary_are_inside():
    assert model("zamba").logits(torch.tensor([[0, VOCAB - 1]])).isfinite().all()


@pytest.mark.parametrize("slots", [1, 3])
def test_a_state_for_another_number_of_sequences_is_refused(slots):
    zamba = model("zamba")
    with pytest.raises(ZambaError, match=f"{slots} slots but the batch 2 sequences"):
        zamba.logits(random_ids(2, 4), zamba.new_state(slots))


@pytest.mark.parametrize(
    "ids", [torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)]
)
def test_logits_want_rows_of_tokens(ids):
    with pytest.raises(ZambaError, match="token ids have shape"):
        model("zamba").logits(ids)


# what the model is made of


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_name_table(name):
    expected = parameter_shapes(CONFIGS[name])
    assert {n: tuple(p.shape) for n, p in Zamba(CONFIGS[name], device="meta").named_parameters()} == expected


def test_a_shared_block_is_one_module_called_several_times():
    zamba, calls = model("zamba2, everything"), []
    hooks = [block.register_forward_hook(lambda block, *_: calls.append(block)) for block in zamba.blocks]
    zamba.logits(text(3)[None])
    for hook in hooks:
        hook.remove()
    assert calls == [zamba.blocks[0], zamba.blocks[1], zamba.blocks[0]]


# bfloat16: logits brought to a spread of 1, since the table speaks of those


@cache
def narrow(name):
    return random_model(CONFIGS[name], seed=7, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_bfloat16_stays_near_float32(name):
    expected, logits = whole(name, 65), narrow(name).logits(text(65)[None])[0]
    assert logits.dtype == torch.float32
    error = (logits - expected).square().mean().sqrt() / expected.std()
    assert_within("narrow", error, torch.zeros(()), dtype=torch.bfloat16)


@pytest.mark.parametrize("route", [single_steps, chunks_of_7, batched_steps], ids=lambda route: route.__name__)
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_routes_in_bfloat16(name, route):
    expected = narrow(name).logits(text(65)[None])[0]
    assert_within("paths", route(narrow(name), text(65)) / expected.std(), expected / expected.std(), dtype=torch.bfloat16)
