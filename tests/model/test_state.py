"""The memory of sequences: declared shapes, views that share it, slots that can be moved, emptied and used again."""

from functools import cache

import pytest
import torch

from tests.model.tiny import CONFIGS, FAMILIES, model, random_ids
from tests.numerics.tolerances import assert_within
from zamba_lm.model.batch import Batch
from zamba_lm.model.state import KV_STEP, State, StateSpec

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
    for tensor in (state.whole.windows, state.whole.ssm, *state.whole.kv):
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
    assert len(state.kv) == config.n_calls and all(kv.shape == (2, 3, config.n_heads, 0, config.head_dim) for kv in state.kv)
    assert state.ssm.dtype == torch.float32 and {state.windows.dtype, *(kv.dtype for kv in state.kv)} == {dtype}
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
        for kv, expected in zip(state.kv, states[0].kv, strict=True):
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
        rooms.append(state.kv[0].shape[3])
    assert rooms == [KV_STEP, KV_STEP, 2 * KV_STEP, 2 * KV_STEP, 2 * KV_STEP, 3 * KV_STEP, 3 * KV_STEP]


def test_one_long_sequence_makes_room_for_all():
    state = model("zamba").new_state(2)
    state.reserve((3 * KV_STEP + 1, 1))
    assert {kv.shape[3] for kv in state.kv} == {4 * KV_STEP}
    state.reserve((1, 1))
    assert {kv.shape[3] for kv in state.kv} == {4 * KV_STEP}, "room is not given back"


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
    for kv in state.kv:
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
def test_after_a_move_the_two_part(name):
    state = model(name).new_state(2)
    read(name, state, text(0)[:10], text(1)[:3])
    state.move(0, 1)
    (other,) = read(name, state.slots(1, 2), text(5))
    (on,) = read(name, state.slots(0, 1), text(0)[10:])
    assert_within("paths", on, whole(name, 0)[10:])
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
    state = model(name).new_state(4)
    read(name, state, *(text(seed)[: 5 + seed] for seed in range(4)))
    resized = state.slots(1, 3).resized(slots)
    starts = [6, 7, 0, 0, 0][:slots]
    assert len(resized) == slots and resized.lengths == starts
    poisoned(state)  # nothing is shared
    seeds = [1, 2, 3, 4, 5][:slots]
    for seed, start, part in zip(seeds, starts, read(name, resized, *(text(s)[n:] for s, n in zip(seeds, starts))), strict=True):
        assert_within("paths", part, whole(name, seed)[start:])


@pytest.mark.parametrize("do", ["reset", "move from", "move to"])
@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_outside_a_view_is_out_of_reach(slot, do):
    state = model("zamba").new_state(4)
    read("zamba", state, [1], [2], [3], [4])
    before, view = state.clone(), state.slots(1, 3)
    with pytest.raises(IndexError, match=f"slot {slot} of a state with 2"):
        view.reset(slot) if do == "reset" else view.move(*((slot, 0) if do == "move from" else (0, slot)))
    assert state.lengths == before.lengths and torch.equal(state.ssm, before.ssm)
