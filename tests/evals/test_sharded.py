"""A model that FSDP of version 2 has split is measured as the whole one is, and is the same to a cache.

In one process over the gloo back end, as accelerate does not split models on CPUs.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from forked import launched
from tiny_runs import write_documents
from transformers import AutoModelForCausalLM

SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from skipwise.config import RunConfig
from skipwise.evals import SampleCache, evaluate
from skipwise.evals.cache import hash_model
from skipwise.loss import use_chunked_loss
from skipwise.model import load_model
from skipwise.data.corpus import open_corpus
from skipwise.train.validation import build_validation

checkpoint, documents, cache = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{cache}-store", rank=0, world_size=1)
config = RunConfig.from_mapping({"model": checkpoint, "target": 256, "data": {"source": documents, "held_out": 0.2},
                                 "validation": {"num_documents": 2}})
text = torch.arange(200).numpy()
found = []
for split in (False, True):
    loaded = load_model(checkpoint)
    model = loaded.model
    use_chunked_loss(model)
    if split:
        for layer in model.base_model.layers:
            fully_shard(layer)
        fully_shard(model)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        with torch.no_grad():  # As SkipwiseTrainer does before it validates, which enters by a part of the model.
            two = torch.zeros(1, 2, dtype=torch.int64)
            model(input_ids=two, position_ids=torch.arange(2)[None], labels=two)
    kept = SampleCache(cache)
    task = {"kind": "perplexity", "scored_tokens": 16}
    (result,) = evaluate(model, loaded.tokenizer, [task], [48], [text], cache=kept, share_out=False, progress=False)
    files = sorted(path.parent.name for path in kept.folder.rglob("*.jsonl"))
    texts = open_corpus(config.data, loaded.tokenizer)
    found.append({
        "validation": build_validation(config, texts, loaded, [32, 64], share_out=not split)(),
        "perplexity": result.value,
        "hash": hash_model(model),
        "named": result.details["model_sha256"],
        "samples": sum(len(kept.read(key)) for key in set(files)),
    })
print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What the whole model and the split one give."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "documents").mkdir()
    documents = write_documents(folder / "documents")
    done = launched(SCRIPT, tiny_checkpoint, documents, folder / "cache", SKIPWISE_CACHE=str(folder / "tokens"))
    return json.loads(done.stdout.splitlines()[-1])


def test_a_split_model_has_the_perplexity_of_a_plain_loop(found: list[dict], tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    ids = torch.arange(48)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
    nlls = [-logits[i - 1, ids[0, i]].item() for i in range(32, 48)]
    for one in found:
        assert one["perplexity"] == pytest.approx(math.exp(sum(nlls) / 16), rel=1e-5)


def test_a_split_model_is_validated_as_the_whole_one(found: list[dict]) -> None:
    whole, split = found
    assert set(whole["validation"]) == {"perplexity_32", "perplexity_64"}
    assert split["validation"] == pytest.approx(whole["validation"], rel=1e-6)


def test_a_split_model_is_found_in_the_cache_of_the_whole_one(found: list[dict]) -> None:
    whole, split = found
    assert split["hash"] == split["named"] == whole["hash"] == whole["named"]
    assert (whole["samples"], split["samples"]) == (1, 1)
