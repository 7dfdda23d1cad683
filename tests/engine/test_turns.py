"""Whose turn it is: from the lengths of sequences that attention is told, as vLLM leaves them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.lora.model_manager import LoRAModelManager
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

from service.engine.loader import StrictLoRAManager
from service.engine.turns import Turns, positions

SLOTS, MOST = 3, 4


def metadata(sequences: list[tuple[int, int]]) -> dict[str, Any]:
    """Sequences by their length and how many tokens of them are computed in this step."""
    computed = torch.tensor([0, *(count for _, count in sequences)])
    lengths = torch.tensor([length for length, _ in sequences], dtype=torch.int32)
    return {
        "model.layers.1.self_attn.attn": CPUAttentionMetadata(
            num_actual_tokens=int(computed.sum()),
            max_query_len=int(computed.max()),
            query_start_loc=computed.cumsum(0).int(),
            max_seq_len=int(lengths.max()),
            seq_lens=lengths,
            block_table=torch.empty(0),
            slot_mapping=torch.empty(0),
            scheduler_metadata=None,
        )
    }


@pytest.fixture
def turns() -> Turns:
    """In slot 1 three parts take turns, each for two positions."""
    turns = Turns(SLOTS, MOST)
    assert list(turns.begin(1, parts=3, period=2)) == [7, 8, 9]  # behind slots, and parts of slot 0
    return turns


@pytest.fixture
def config() -> VllmConfig:
    return VllmConfig()


def test_a_row_is_at_the_length_before_the_step_and_its_place_in_it():
    sequences = [(5, 5), (9, 1), (7, 3)]
    assert positions(metadata(sequences), 9).tolist() == [0, 1, 2, 3, 4, 8, 4, 5, 6]


def test_rows_get_the_part_whose_turn_it_is_and_others_what_they_have(
    turns: Turns, config: VllmConfig
):
    assert turns.wait([1] * 8 + [0, -1, 2])
    with set_forward_context(metadata([(8, 8), (3, 1), (6, 1), (9, 1)]), config):
        rows = turns.rows()
        assert rows is not None
        assert rows.tolist() == [7, 7, 8, 8, 9, 9, 7, 7, 0, -1, 2]
        assert turns.rows() is None  # known already


def test_a_step_of_the_same_sequences_is_further_on(turns: Turns, config: VllmConfig):
    """vLLM tells the wrapper of a batch only once, however many steps it is the same."""
    turns.wait([1, 1])
    found = []
    for length in range(6, 10):
        with set_forward_context(metadata([(length, 1), (length + 2, 1)]), config):
            rows = turns.rows()
            assert rows is not None
            found.append(rows.tolist())
    assert found == [[9, 7], [7, 8], [7, 8], [8, 9]]  # positions 5 and 7, then 6 and 8, …


def test_nothing_waits_where_nobody_takes_turns_any_more(turns: Turns):
    assert not turns.wait([0, -1, 2])
    assert turns.wait([1])
    turns.end(1)
    assert not turns.wait([1])
    assert not turns.waiting


def test_an_engine_without_our_kernels_refuses_turns_and_says_why(tmp_path: Path):
    manager = StrictLoRAManager.__new__(StrictLoRAManager)
    manager._adapter_manager = LoRAModelManager.__new__(LoRAModelManager)  # vLLM's own
    manifest = tmp_path / "turns.json"
    manifest.write_text('{"parts": [], "period": 1}')
    with pytest.raises(ValueError, match="@switch is served by the kernels of a CPU engine"):
        manager._load_composition(1, manifest)
