"""How a share of a tensor is written into, and read from, checkpoints that know whole tensors (torch.distributed.checkpoint).

Tensors are named "model.NAME" or "optim.KEY.NAME"; ``shares`` says by NAME which share of the whole one lies here. What several
ranks hold is written once, as the default planners see to it.
"""

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from zamba_lm.train.scale.shares import Chunk, Share


class _Shared:
    """What both planners know."""

    state_dict: dict

    def __init__(self, shares: dict[str, Share]):
        super().__init__()
        self._shares = shares

    def share(self, key: str) -> Share | None:
        """None for what is no share, such as a number of steps."""
        name = key.split(".", 2)[2] if key.startswith("optim.") else key.removeprefix("model.")
        return self._shares.get(name) if self.state_dict[key].dim() else None

    def chunks(self, key: str) -> list[Chunk]:
        share = self.share(key)
        return list(share.chunks(self.state_dict[key])) if share else []

    def at(self, index: MetadataIndex) -> Tensor:
        """The numbers that stand at a place of the whole tensor."""
        return next(one.numbers for one in self.chunks(index.fqn) if one.offsets == tuple(index.offset or ()))


class Writing(_Shared, DefaultSavePlanner):
    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = [item for item in plan.items if self.share(item.index.fqn) is None]
        self.plan = SavePlan(
            items + [item for key in self.state_dict for item in self._items(key)], planner_data=plan.planner_data
        )
        return self.plan

    def _items(self, key: str) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(key, torch.Size(one.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    _chunk(one), TensorProperties.create_from_tensor(one.numbers), torch.Size(self.share(key).size)
                ),
            )
            for one in self.chunks(key)
        ]

    def lookup_object(self, index: MetadataIndex):
        return super().lookup_object(index) if self.share(index.fqn) is None else self.at(index)


class Reading(_Shared, DefaultLoadPlanner):
    def create_local_plan(self) -> LoadPlan:
        plain = {key: one for key, one in self.state_dict.items() if self.share(key) is None}
        items = create_default_local_load_plan(plain, self.metadata).items
        for key in self.state_dict.keys() - plain.keys():
            found = self.metadata.state_dict_metadata.get(key)
            if found is None or tuple(found.size) != self.share(key).size:
                raise RuntimeError(f"the checkpoint holds {key} as {found and tuple(found.size)}, not {self.share(key).size}")
            items = items + create_read_items_for_chunk_list(key, found, [_chunk(one) for one in self.chunks(key)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return super().lookup_tensor(index) if self.share(index.fqn) is None else self.at(index)


def _chunk(one: Chunk) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(one.offsets), sizes=one.numbers.shape)
