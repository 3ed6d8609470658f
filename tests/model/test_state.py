"""The memory of sequences: declared shapes, views that share it, slots that can be moved, emptied and used again."""

from functools import cache

import pytest
import torch

from tests.model.tiny import CONFIGS, FAMILIES, model, random_ids
from tests.numerics.tolerances import assert_within
from zamba_lm.model.batch import Batch
from zamba_lm.model.kv import STEP as KV_STEP
from zamba_lm.model.state import State, StateSpec

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.inference_mode():
        yield


@cache
def text(seed, length=40):
    return random_ids(length, seed=seed).tolist()


@cache
def whole(name, seed, length=40):
    return model(name).logits(torch.tensor([text(seed, length)]))[0]


def read(name, state, *parts):
    """Logits of each part: parts[s] are the tokens for slot s."""
    return model(name)(Batch.pack(parts), state).split([len(part) for part in parts])


def poisoned(state):
    """Fill all memory with NaN, also where nothing was written."""
    for tensor in (state.whole.windows, state.whole.ssm, *state.whole.kv.stores):
        tensor.fill_(torch.nan)
    return state


# what it is


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_dtypes_are_the_declared_ones(name, dtype):
    config, state = CONFIGS[name], State(CONFIGS[name], 3, dtype=dtype)
    spec = StateSpec.of(config)
    assert state.windows.shape == (config.n_layers, 3, config.d_conv - 1, config.conv_dim) == (config.n_layers, 3, *spec.window)
    assert state.ssm.shape == (config.n_layers, 3, config.n_ssm_heads, config.ssm_head_dim, config.d_state)
    assert len(state.kv.stores) == config.n_calls and all(
        kv.shape == (2, 3, config.n_heads, 0, config.head_dim) for kv in state.kv.stores
    )
    assert state.ssm.dtype == torch.float32 and {state.windows.dtype, *(kv.dtype for kv in state.kv.stores)} == {dtype}
    assert len(state) == 3 and state.lengths == [0, 0, 0] and not state.ssm.any() and not state.windows.any()


@pytest.mark.parametrize("name", CONFIGS)
def test_its_bytes_are_those_the_config_foretells(name):
    config, state = CONFIGS[name], model(name).new_state(2)
    empty = 2 * (config.state_bytes() + config.conv_state_bytes("float32"))
    assert state.nbytes == empty
    read(name, state, text(0), text(1))
    assert state.nbytes == empty + 2 * KV_STEP * config.kv_bytes_per_token("float32")
    assert state.slots(0, 1).nbytes == state.nbytes


@pytest.mark.parametrize("name", FAMILIES)
def test_every_route_leaves_the_same_memory(name):
    states = [model(name).new_state(1) for _ in range(3)]
    for state, cuts in zip(states, ([40], [7] * 5 + [5], [1] * 40), strict=True):
        at = 0
        for n in cuts:
            read(name, state, text(0)[at : at + n])
            at += n
    for state in states[1:]:
        assert_within("state", state.ssm, states[0].ssm)
        assert_within("paths", state.windows, states[0].windows)
        for kv, expected in zip(state.kv.stores, states[0].kv.stores, strict=True):
            assert_within("paths", kv[:, :, :, :40], expected[:, :, :, :40])


# views


@pytest.mark.parametrize("name", CONFIGS)
def test_a_view_continues_the_slots_it_shows(name):
    state = model(name).new_state(4)
    read(name, state.slots(1, 3), text(1)[:10], text(2)[:20])
    assert state.lengths == [0, 10, 20, 0]
    read(name, state.slots(0, 1), text(0)[:5])
    (rest,) = read(name, state.slots(2, 3), text(2)[20:])
    assert_within("paths", rest, whole(name, 2)[20:])
    rests = read(name, state, text(0)[5:], text(1)[10:], [3], text(3))
    for seed, start, part in ((0, 5, rests[0]), (1, 10, rests[1]), (3, 0, rests[3])):
        assert_within("paths", part, whole(name, seed)[start:])
    assert state.lengths == [40, 40, 41, 40]


def test_a_view_of_a_view_counts_from_its_own_start():
    state = model("zamba").new_state(5)
    view = state.slots(1, 5).slots(2, 4)
    assert len(view) == 2
    read("zamba", view, [1], [1, 2])
    assert state.lengths == [0, 0, 0, 1, 2] and view.lengths == [1, 2]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_view_made_before_the_room_grew_still_works(name):
    zamba, state = model(name), model(name).new_state(2)
    view, long = state.slots(1, 2), text(6, KV_STEP + 10)
    read(name, view, long[:5])
    read(name, state.slots(0, 1), long)  # grows
    assert_within("paths", read(name, view, long[5:])[0], zamba.logits(torch.tensor([long]))[0, 5:])


@pytest.mark.parametrize("bounds", [(-1, 1), (0, 0), (2, 1), (0, 4), (3, 4)], ids=str)
def test_a_view_outside_is_refused(bounds):
    with pytest.raises(IndexError, match="of a state with 3"):
        State(CONFIGS["zamba"], 3).slots(*bounds)


# room for keys and values


@pytest.mark.parametrize("name", ["zamba", "zamba2, everything"])
def test_room_grows_and_keeps_what_was_there(name):
    zamba, state = model(name), model(name).new_state(2)
    texts = [text(seed, 2 * KV_STEP + 30) for seed in (8, 9)]
    done, rooms = 0, []
    for n in (KV_STEP - 1, 1, 1, KV_STEP - 2, 1, 1, 29):  # to the brim, over it, and again
        parts = read(name, state, *(one[done : done + n] for one in texts))
        for one, part in zip(texts, parts, strict=True):
            assert_within("paths", part, zamba.logits(torch.tensor([one[: done + n]]))[0, done:])
        done += n
        rooms.append(state.kv.stores[0].shape[3])
    assert rooms == [KV_STEP, KV_STEP, 2 * KV_STEP, 2 * KV_STEP, 2 * KV_STEP, 3 * KV_STEP, 3 * KV_STEP]


def test_one_long_sequence_makes_room_for_all():
    state = model("zamba").new_state(2)
    state.reserve((3 * KV_STEP + 1, 1))
    assert {kv.shape[3] for kv in state.kv.stores} == {4 * KV_STEP}
    state.reserve((1, 1))
    assert {kv.shape[3] for kv in state.kv.stores} == {4 * KV_STEP}, "room is not given back"


# slots: empty, move, copy


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dirty_slot_is_clean_after_reset(name):
    state = model(name).new_state(2)
    read(name, state, text(0), text(1))
    poisoned(state)
    for slot in (0, 1):
        state.reset(slot)
    assert state.lengths == [0, 0]
    fresh = model(name).new_state(2)
    assert all(map(torch.equal, read(name, state, text(2)[:9], text(3)), read(name, fresh, text(2)[:9], text(3))))
    assert all(map(torch.equal, read(name, state, text(2)[9:10], [4]), read(name, fresh, text(2)[9:10], [4])))
    assert all(map(torch.equal, read(name, state, text(2)[10:], [5]), read(name, fresh, text(2)[10:], [5])))


@pytest.mark.parametrize("name", CONFIGS)
def test_poison_in_one_slot_stays_there(name):
    state = model(name).new_state(3)
    read(name, state, *(text(seed)[:10] for seed in range(3)))
    state.windows[:, 1] = state.ssm[:, 1] = torch.nan
    for kv in state.kv.stores:
        kv[:, 1] = torch.nan
    first, middle, last = read(name, state, *(text(seed)[10:] for seed in range(3)))
    assert middle.isnan().any()
    assert_within("paths", first, whole(name, 0)[10:])
    assert_within("paths", last, whole(name, 2)[10:])


@pytest.mark.parametrize("name", CONFIGS)
def test_reset_leaves_the_others_alone(name):
    state = model(name).new_state(2)
    read(name, state, text(0)[:10], text(1)[:10])
    state.reset(0)
    again, on = read(name, state, text(2), text(1)[10:])
    assert_within("paths", again, whole(name, 2))
    assert_within("paths", on, whole(name, 1)[10:])


@pytest.mark.parametrize(("source", "target"), [(0, 1), (2, 0), (1, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_moved_slot_goes_on_as_its_source(name, source, target):
    state, starts = model(name).new_state(3), (5, 30, 12)
    read(name, state, *(text(seed)[:n] for seed, n in enumerate(starts)))
    state.move(source, target)
    seeds = [source if slot == target else slot for slot in range(3)]
    assert state.lengths == [starts[seed] for seed in seeds]
    for seed, part in zip(seeds, read(name, state, *(text(seed)[starts[seed] :] for seed in seeds)), strict=True):
        assert_within("paths", part, whole(name, seed)[starts[seed] :])


@pytest.mark.parametrize("name", FAMILIES)
def test_after_a_move_the_source_can_be_used_anew(name):
    state = model(name).new_state(2)
    read(name, state, text(0)[:10], text(1)[:3])
    state.move(0, 1)
    state.reset(0)
    fresh, other = read(name, state, text(2), text(5))
    assert_within("paths", fresh, whole(name, 2))
    assert_within("paths", other, model(name).logits(torch.tensor([text(0)[:10] + text(5)]))[0, 10:])


def test_moves_inside_a_view_stay_inside():
    state = model("zamba").new_state(4)
    read("zamba", state, *([seed] * (seed + 1) for seed in range(4)))
    view = state.slots(1, 4)
    view.move(2, 0)
    view.reset(1)
    assert state.lengths == [1, 4, 0, 4]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_clone_goes_its_own_way(name):
    state = model(name).new_state(3)
    read(name, state, text(0)[:3], text(1)[:10], text(2)[:20])
    copy = state.slots(1, 3).clone()
    assert len(copy) == 2 and copy.lengths == [10, 20]
    read(name, state, text(7), text(7), text(7))  # what happens to the original does not matter to it
    for slot in range(3):
        state.reset(slot)
    for seed, start, part in zip((1, 2), (10, 20), read(name, copy, text(1)[10:], text(2)[20:]), strict=True):
        assert_within("paths", part, whole(name, seed)[start:])
    assert state.lengths == [0, 0, 0] and copy.lengths == [40, 40]


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_resized_state_keeps_the_first_slots_and_has_empty_ones(name, slots):
    state = model(name).new_state(3)
    read(name, state, *(text(seed)[: 5 + seed] for seed in range(3)))
    before = state.version
    state.resize(slots)
    starts = [5, 6, 7, 0, 0][:slots]
    assert len(state) == slots and state.lengths == starts and state.version > before
    seeds = range(slots)
    for seed, start, part in zip(seeds, starts, read(name, state, *(text(s)[n:] for s, n in zip(seeds, starts))), strict=True):
        assert_within("paths", part, whole(name, seed)[start:])


# pages


def paged(name, n):
    return State(CONFIGS[name], n, paged=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_pages_hold_what_stretches_hold(name):
    """Slots that grow in turns get pages that do not lie side by side."""
    states = State(CONFIGS[name], 3), paged(name, 3)
    poisoned(states[1].whole)
    for slot in range(3):
        states[1].reset(slot)
    texts = [text(seed, KV_STEP + 40) for seed in range(3)]
    for cut in (slice(0, 20), slice(20, KV_STEP - 1), slice(KV_STEP - 1, KV_STEP + 2), slice(KV_STEP + 2, None)):
        ours, theirs = (read(name, state, *(one[cut] for one in texts)) for state in states)
        assert all(not part.isnan().any() for part in theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_within("paths", a, b)
    assert sorted(map(tuple, states[1].kv.owned)) == [(0, 3), (1, 4), (2, 5)]


@pytest.mark.parametrize("name", FAMILIES)
def test_pages_are_given_back_and_used_again(name):
    state = paged(name, 2)
    read(name, state, text(0), text(1))
    kept = state.clone()
    state.reset(0)
    read(name, state.slots(0, 1), text(2)[:5])
    assert state.kv.n_pages == 2 and state.kv.free == [] and sorted(map(tuple, state.kv.owned)) == [(0,), (1,)]
    state.move(0, 1)
    state.reset(0)
    fresh, on = read(name, state, text(3), text(2)[5:])
    assert_within("paths", fresh, whole(name, 3))
    assert_within("paths", on, whole(name, 2)[5:])
    texts = [text(0) + text(6), text(1) + text(7)]
    for part, one in zip(read(name, kept, text(6), text(7)), texts, strict=True):
        assert_within("paths", part, model(name).logits(torch.tensor([one]))[0, 40:])


def test_a_table_of_pages_grows_with_the_longest():
    state = paged("zamba", 2)
    state.reserve((1, 70 * KV_STEP))
    assert state.kv.table.shape[1] >= 70 and len(state.kv.owned[1]) == 70 and state.kv.n_pages == 71
    assert state.kv.table[1, :70].tolist() == state.kv.owned[1]


def test_a_slot_that_gets_no_pages_leaves_nothing_behind(monkeypatch):
    state = paged("zamba", 2)
    state.reserve((KV_STEP, 1))

    def scarce(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("zamba_lm.model.kv.with_entries", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        state.reserve((KV_STEP + 1, 1))
    assert [len(pages) for pages in state.kv.owned] == [1, 1] and state.kv.n_pages == 2 and state.kv.free == []
    state.reserve((KV_STEP, KV_STEP))


@pytest.mark.parametrize("do", ["reset", "move from", "move to"])
@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_outside_a_view_is_out_of_reach(slot, do):
    state = model("zamba").new_state(4)
    read("zamba", state, [1], [2], [3], [4])
    before, view = state.clone(), state.slots(1, 3)
    with pytest.raises(IndexError, match=f"slot {slot} of a state with 2"):
        view.reset(slot) if do == "reset" else view.move(*((slot, 0) if do == "move from" else (0, slot)))
    assert state.lengths == before.lengths and torch.equal(state.ssm, before.ssm)


# slots in any order, and going back


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_slots_are_selected_in_any_order(name, paged):
    state = State(CONFIGS[name], 3, paged=paged)
    texts = [text(seed) for seed in range(3)]
    read(name, state, *(one[: 5 + seed] for seed, one in enumerate(texts)))
    chosen = [2, 0, 2, 1]
    other = state.slots(1, 3).select([1, 0]) if not paged else state.select([2, 1])
    several = state.select(chosen)
    assert several.lengths == [7, 5, 7, 6] and several.whole is several
    poisoned(state)
    for some, rows in ((several, chosen), (other, [2, 1])):
        found = read(name, some, *(texts[row][5 + row : 20] for row in rows))
        for row, logits in zip(rows, found):
            assert_within("paths", logits, whole(name, row)[5 + row : 20])


def test_slots_that_are_not_there_are_not_selected():
    with pytest.raises(IndexError):
        State(CONFIGS["zamba"], 3).slots(1, 3).select([0, 2])


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_going_back_to_a_snapshot(name, paged):
    state = State(CONFIGS[name], 3, paged=paged)
    texts = [text(seed) for seed in range(3)]
    read(name, state, *(one[:9] for one in texts))
    part = state.slots(1, 3)
    snapshot = part.snapshot()
    for _ in range(2):
        read(name, part, *(text(seed + 7, 13) for seed in range(2)))
        part.restore(snapshot)
        assert state.lengths == [9, 9, 9]
    found = read(name, state, *(one[9:20] for one in texts))
    for seed, logits in enumerate(found):
        assert_within("paths", logits, whole(name, seed)[9:20])
    swapped = snapshot.select([1, 0])
    assert torch.equal(swapped.ssm[:, 0], snapshot.ssm[:, 1]) and swapped.ages == (9, 9)
