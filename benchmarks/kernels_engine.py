"""Sixteen adapters in a real vLLM engine, against the same engine without any, in one process.

usage: python benchmarks/kernels_engine.py [--quick] [--json FILE]

kernels.py runs it and puts what it finds into its report.  `ours_over_stock` is tokens per second
with adapters, ours over vLLM's; `engine_with_over_without_16` is ours over those of the engine
without LoRA, and `stock_with_over_without_16` the same for vLLM's.

Three engines serve one base by turns: without LoRA, with vLLM's own wrapper, and with ours.  The
base has the shape of TinyLlama-1.1B (hidden 2048, FFN 5632, 32 heads, 4 KV heads) and random
weights.  Sixteen requests of 32 tokens generate greedily: for the base, or each with an adapter of
its own, of rank 16 on all seven linears.  Adapters are loaded, and everything has run once, before
the clock starts; the prefix cache is off.

On a GPU it has its 22 layers, bfloat16, compiled and with captured graphs as vLLM has them by
default, and seconds are those of the clock.  On a CPU it has 4 layers and a vocabulary in
proportion, so that the head has the share of the work that it has there, float32, one thread, and
seconds are CPU seconds of the process, which other work on the machine lengthens little.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_PLUGINS": "",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
    "HF_HUB_OFFLINE": "1",
}

import report
import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

GPU = torch.cuda.is_available()
HIDDEN, FFN, HEADS, KV_HEADS = 2048, 5632, 32, 4
LAYERS, VOCABULARY = (22, 32000) if GPU else (4, 6144)
DTYPE = torch.bfloat16 if GPU else torch.float32
ADAPTERS, RANK, PROMPT = 16, 16, 32
KV = KV_HEADS * HIDDEN // HEADS
LINEARS = {  # outputs and inputs
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
TARGETS = [name.partition(".")[2] for name in LINEARS]


def write_base(directory: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))


def write_adapter(directory: Path) -> None:
    directory.mkdir()
    tensors = {}
    for layer in range(LAYERS):
        for name, (outputs, inputs) in LINEARS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = (torch.randn(RANK, inputs) / inputs**0.5).to(DTYPE)
            tensors[f"{prefix}.lora_B.weight"] = (torch.randn(outputs, RANK) * 0.01).to(DTYPE)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": TARGETS}
    (directory / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))


def engine(base: Path, **lora: Any) -> LLM:
    return LLM(
        str(base),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=DTYPE,
        enforce_eager=not GPU,
        max_model_len=512,
        max_num_seqs=ADAPTERS,
        gpu_memory_utilization=0.25,  # there are three
        kv_cache_memory_bytes=1 << 27,
        enable_prefix_caching=False,
        seed=0,
        **lora,
    )


def engines(base: Path) -> dict[str, LLM]:
    """Ours last, since what its plugin puts into vLLM stays for the process."""
    lora = {
        "enable_lora": True,
        "max_loras": ADAPTERS,
        "max_cpu_loras": ADAPTERS,
        "max_lora_rank": RANK,
        "lora_target_modules": TARGETS,
    }
    found = {"without": engine(base), "stock": engine(base, **lora)}
    from service.engine import punica

    punica.install()
    return {**found, "ours": engine(base, **lora)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens, fewer turns")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    tokens, turns = (8, 2) if options.quick else (128, 8) if GPU else (16, 4)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_base(directory)
        for i in range(ADAPTERS):
            write_adapter(directory / f"{i}")
        adapters = [LoRARequest(f"{i}", i + 1, str(directory / f"{i}")) for i in range(ADAPTERS)]
        served = engines(directory)
        rows = compare(served, adapters, tokens, turns)
    if options.json:
        print(report.write(options.json.stem, figures(rows), rows, options.json))
    print(json.dumps(figures(rows), indent=2), flush=True)


def compare(
    served: dict[str, LLM], adapters: list[LoRARequest], tokens: int, turns: int
) -> list[dict[str, Any]]:
    """Median tokens per second of each engine, for the base and with the adapters, by turns."""
    prompts = [
        {"prompt_token_ids": torch.randint(VOCABULARY, (PROMPT,)).tolist()} for _ in adapters
    ]
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0, detokenize=False)
    clock = time.monotonic if GPU else time.process_time
    uses = [("without", None)] + [(n, a) for n in ("stock", "ours") for a in (None, adapters)]
    seconds: list[list[float]] = [[] for _ in uses]
    said: list[Any] = [None] * len(uses)
    for turn in range(turns + 1):
        for i, (name, lora) in enumerate(uses):
            started = clock()
            outputs = served[name].generate(prompts, sampling, lora_request=lora, use_tqdm=False)
            if turn:  # the first one loads adapters and warms up
                seconds[i].append(clock() - started)
            said[i] = [list(output.outputs[0].token_ids) for output in outputs]
    medians = [statistics.median(s) for s in seconds]
    return [
        {
            "engine": name,
            "adapters": len(lora or ()),
            "requests": len(prompts),
            "tokens_per_second": round(len(prompts) * tokens / median, 2),
            "over_without": round(medians[0] / median, 3),
            "requests_that_answer_as_stock": sum(
                map(list.__eq__, said[i], said[uses.index(("stock", lora))])
            ),
            "seconds": [round(s, 3) for s in seconds[i]],
        }
        for i, ((name, lora), median) in enumerate(zip(uses, medians, strict=True))
    ]


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the rows with adapters."""
    stock, ours = (row for row in rows if row["adapters"])
    return {
        "ours_over_stock": round(ours["tokens_per_second"] / stock["tokens_per_second"], 3),
        f"engine_with_over_without_{ours['adapters']}": ours["over_without"],
        f"stock_with_over_without_{stock['adapters']}": stock["over_without"],
    }


if __name__ == "__main__":
    main()
