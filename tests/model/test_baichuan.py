"""Baichuan: read without its code as the Llama model that computes the same, or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baichuan_reference import CODE, LAYERS, Baichuan, add_tokenizer, baichuan, config, save_baichuan
from peft import PeftModel
from refusals import Trap, refused
from tiny_models import WINDOW
from tiny_runs import run, settings_of, write_documents
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from skipwise.config import QloraTuning
from skipwise.doctor.checkup import check_up, write_fixed
from skipwise.errors import CheckpointError, ConfigError, SkipwiseError, UnsupportedModelError
from skipwise.export import export
from skipwise.model import (
    dequantized,
    four_bits,
    load_model,
    portability_note,
    read_config,
    rotary_tables,
    save_model,
)
from skipwise.model.extend import extended_config
from skipwise.model.sentencepieces import fast_tokenizer, read_pieces
from skipwise.model.source import locate
from skipwise.model.tokenizer import load_tokenizer
from skipwise.plan.engines import engine_commands
from skipwise.plan.machines import MACHINES
from skipwise.plan.serving import Deployment
from skipwise.plan.shape import model_shape
from skipwise.rope import RopeSpec, YaRN

MODELS = Path(__file__).parent / "sentencepiece_models"
IDS = torch.arange(48)[None] * 7 % 640
LAYOUTS = ("bin", "safetensors", "bin-shards", "safetensors-shards")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of version 2 with its tokenizer."""
    folder = save_baichuan(baichuan(2, 600), tmp_path_factory.mktemp("second"))
    add_tokenizer(folder)
    return folder


def loaded(folder: Path, **how: Any) -> Any:
    add_tokenizer(folder)
    return load_model(folder, **how).model


def assert_same(model: Any, reference: Baichuan) -> None:
    with torch.no_grad():
        found = model(input_ids=IDS).logits
    torch.testing.assert_close(found, reference(IDS, torch.arange(IDS.shape[1])), rtol=1e-5, atol=1e-5)


def changed(folder: Path, **settings: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", [1, 2])
def test_logits_are_those_of_the_published_architecture(version: int, layout: str, tmp_path: Path) -> None:
    reference = baichuan(version)
    model = loaded(save_baichuan(reference, tmp_path / "model", layout))
    assert model.config.model_type == "llama"
    assert_same(model, reference)


def test_the_two_versions_differ_by_their_head_alone() -> None:
    """Else the test above would not see a head that is taken for the other."""
    plain, normalised = baichuan(2), baichuan(2)
    plain.version = 1
    positions = torch.arange(IDS.shape[1])
    assert not torch.allclose(plain(IDS, positions), normalised(IDS, positions), rtol=0.1)


@pytest.mark.parametrize(("version", "vocabulary"), [(1, 640), (2, 640), (1, 64000), (2, 125696)])
def test_without_its_code_the_head_is_known_by_published_settings(
    version: int, vocabulary: int, tmp_path: Path
) -> None:
    reference = baichuan(version, vocabulary)
    folder = save_baichuan(reference, tmp_path / "model", "safetensors", code=False)
    if vocabulary > 640:
        changed(folder, architectures=None)
    assert_same(loaded(folder), reference)


def test_a_head_that_nothing_tells_of_is_not_guessed(tmp_path: Path) -> None:
    folder = changed(save_baichuan(baichuan(2), tmp_path / "model", code=False), architectures=["Mine"])
    with pytest.raises(UnsupportedModelError, match="modeling_baichuan"):
        loaded(folder)


@pytest.mark.parametrize("version", [1, 2])
def test_extended_it_is_a_plain_llama_checkpoint(version: int, tmp_path: Path) -> None:
    folder = save_baichuan(baichuan(version, 600), tmp_path / "model")
    add_tokenizer(folder)
    model, tokenizer = load_model(folder, interpolation=YaRN(), window=WINDOW)
    save_model(model, tokenizer, tmp_path / "saved")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(plain).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        assert torch.equal(plain(input_ids=IDS).logits, model(input_ids=IDS).logits)
    expected = YaRN().table(RopeSpec(rotary_dim=8, theta=1e4), WINDOW)
    (table,) = rotary_tables(plain).values()
    np.testing.assert_allclose(table.inv_freq, expected.inv_freq, rtol=1e-6)
    assert table.attention_factor == pytest.approx(expected.attention_factor)
    read = AutoConfig.from_pretrained(tmp_path / "saved")
    assert (read.max_position_embeddings, hasattr(read, "auto_map")) == (256, False)
    note = portability_note(model.config)
    assert note is not None
    assert "Llama" in note
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "saved")("白日 12")["input_ids"] == tokenizer("白日 12")["input_ids"]
    )


def test_half_precision_rounds_the_normalised_head_once(second: Path) -> None:
    weight = baichuan(2, 600).lm_head.weight
    expected = (weight / weight.norm(dim=1, keepdim=True)).to(torch.bfloat16)
    model: Any = load_model(second, dtype="bfloat16").model
    assert torch.equal(model.lm_head.weight, expected)


def test_it_loads_in_four_bits(second: Path) -> None:
    pytest.importorskip("bitsandbytes")
    quantization = four_bits(QloraTuning(), torch.device("cpu"), compute=torch.float32)
    model: Any = load_model(second, quantization=quantization).model
    packed = baichuan(2, 600).model.layers[1].self_attn.W_pack.weight
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = packed[part * 32 : part * 32 + 32]
        found = dequantized(model.model.layers[1].self_attn.get_submodule(name))
        # Half of the widest gap between two values of NF4, of the largest in a block.
        assert (found - rows).abs().max() < 0.16 * rows.abs().max()


def test_a_config_alone_is_enough_to_plan(tmp_path: Path) -> None:
    for version in (1, 2):
        folder = tmp_path / str(version)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config(version)))
        shape = model_shape(str(folder))
        assert shape.counts.total == sum(p.numel() for p in baichuan(version).parameters())
        assert shape.original_tokens == 64
    # vLLM would read the base as it is, in which nothing takes the extended rope.
    extended = extended_config(read_config(tmp_path / "2"), YaRN(), WINDOW)
    engines = engine_commands("base", 256, Deployment(machine=MACHINES["h100"]), extended)
    assert any("extended checkpoint" in name for name in engines)
    assert not any("vLLM, the base" in name for name in engines)


def test_alibi_is_refused_by_every_reader_of_a_config(tmp_path: Path) -> None:
    published = config(2, 125696) | {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40}
    (tmp_path / "config.json").write_text(json.dumps(published))
    tiny = save_baichuan(baichuan(2), tmp_path / "tiny")
    (tiny / "modeling_baichuan.py").write_text(CODE[13])
    for folder in (tmp_path, tiny):
        for read in (read_config, check_up, lambda source: model_shape(str(source))):
            with pytest.raises(UnsupportedModelError, match="ALiBi"):
                read(folder)
    with pytest.raises(UnsupportedModelError, match="ALiBi"):
        loaded(tiny)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, UnsupportedModelError, "rope_scaling"),
        ({"rope_theta": 1e6}, UnsupportedModelError, "rope_theta"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, UnsupportedModelError, "quantized"),
        ({"hidden_size": None, "model_max_length": None}, CheckpointError, "hidden_size, .*model_max_length"),
        ({"model_max_length": "64"}, CheckpointError, "expected int"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(settings: Any, error: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(2) | settings))
    for read in (read_config, check_up):
        with refused(error, said):
            read(tmp_path)


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    folder = save_baichuan(baichuan(1), tmp_path / "model")
    torch.save(Trap(tmp_path / "opened"), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model"):
        loaded(folder)
    assert not (tmp_path / "opened").exists()


def test_weights_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    folder = save_baichuan(baichuan(1), tmp_path / "model")
    file = folder / "pytorch_model.bin"
    weights = torch.load(file)
    torch.save(weights | {"model.layers.0.self_attn.scale": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"self_attn\.scale"):
        loaded(folder)
    torch.save({name: value for name, value in weights.items() if "layers.1.self_attn.W_pack" not in name}, file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn"):
        loaded(folder)
    changed(folder, num_hidden_layers=LAYERS - 1)
    with pytest.raises(CheckpointError, match=r"layers\.1"):
        loaded(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        loaded(folder)


def test_doctor_looks_at_it_as_the_model_it_is_read_as(second: Path, tmp_path: Path) -> None:
    assert check_up(second).healthy
    folder = save_baichuan(baichuan(2), tmp_path / "model")
    add_tokenizer(folder, model_max_length=32)
    found = check_up(folder)
    assert {verdict.name: verdict.status for verdict in found.verdicts}["tokenizer"] == "note"
    assert "window is 64" in {verdict.name: verdict.detail for verdict in found.verdicts}["tokenizer"]
    # A Llama config beside packed weights would be of no use to anybody.
    with pytest.raises(ConfigError, match="export"):
        write_fixed(folder, found, tmp_path / "fixed")


@pytest.mark.parametrize("name", ["baichuan", "prefixed", "joined"])
def test_ids_are_those_of_the_sentencepiece_library(name: str) -> None:
    engine = fast_tokenizer(read_pieces(MODELS / f"{name}.model"))
    for recorded in json.loads((MODELS / f"{name}.json").read_text()):
        assert engine.encode(recorded["text"]).ids == recorded["ids"], recorded["text"]
        # It shows unknown characters by a sign of its own, and takes a mark in a text for a space.
        if name != "joined":
            assert engine.decode(recorded["ids"]) == recorded["decoded"]


def test_tokenizer_is_framed_and_filled_as_its_files_say(second: Path, tmp_path: Path) -> None:
    recorded = json.loads((MODELS / "baichuan.json").read_text())
    plain = load_tokenizer(locate(second, weights=False))
    assert [plain(each["text"])["input_ids"] for each in recorded] == [each["ids"] for each in recorded]
    assert (plain.bos_token_id, plain.eos_token_id, plain.pad_token_id, len(plain)) == (1, 2, 0, 600)
    assert plain("<reserved_0>")["input_ids"] == [3]

    folder = save_baichuan(baichuan(2, 602), tmp_path / "model")
    add_tokenizer(folder, add_bos_token=True, add_eos_token=True, added_tokens_decoder={"601": {"content": "<two>"}})
    (folder / "added_tokens.json").write_text(json.dumps({"<one>": 600}))
    framed = load_tokenizer(locate(folder, weights=False))
    assert framed("a<two><one>a")["input_ids"] == [1, *plain("a")["input_ids"], 601, 600, *plain("a")["input_ids"], 2]
    framed.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("a<two> 白日")["input_ids"] == framed("a<two> 白日")["input_ids"]

    framed.save_pretrained(folder)  # A tokenizer.json that somebody made stands over what can be made.
    (folder / "tokenizer.model").unlink()
    assert load_tokenizer(locate(folder, weights=False))("a<two>")["input_ids"] == framed("a<two>")["input_ids"]


def test_a_chat_models_turns_are_those_of_its_code(tmp_path: Path) -> None:
    """Its code joins ids: of the system's text, and for each turn of its token and of its text."""
    folder = save_baichuan(baichuan(2, 600), tmp_path / "model")
    add_tokenizer(folder)
    # A piece that SentencePiece was given as a control symbol, and one that it was not.
    generation = {"user_token_id": 3, "assistant_token_id": 599, "do_sample": True, "top_k": 5, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    turns = [("system", "Be brief."), ("user", "Where is 北"), ("assistant", "There."), ("user", " and now\n")]
    model, tokenizer = load_model(folder)
    expected = []
    for role, text in turns:
        mark = {"user": [3], "assistant": [599], "system": []}[role]
        expected += [*mark, *tokenizer(text)["input_ids"]]
    save_model(model, tokenizer, tmp_path / "saved")
    messages = [{"role": role, "content": text} for role, text in turns]
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        asked = each.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert asked == [*expected, 599]
    assert (model.generation_config.top_k, model.generation_config.eos_token_id) == (5, 2)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2001107\n", {}, "tokenizer.model"),
        (b"", {}, "tokenizer.model"),
        (None, {}, "neither tokenizer.model"),
        # Pieces "a" and "b" alone: SentencePiece's kind, left out, is Unigram.
        (b"\n\x03\n\x01a\n\x03\n\x01b", {}, "Unigram.*tokenizer.json"),
        (..., {"added_tokens_decoder": {"700": {"content": "<far>"}}}, "<far> 700"),
    ],
)
def test_a_tokenizer_that_cannot_be_made_is_one_line(content: Any, settings: Any, said: str, tmp_path: Path) -> None:
    folder = save_baichuan(baichuan(2), tmp_path / "model")
    add_tokenizer(folder, **settings)
    if content is None:
        (folder / "tokenizer.model").unlink()
    elif content is not ...:
        (folder / "tokenizer.model").write_bytes(content)
    with refused(SkipwiseError, said):
        load_model(folder)


def test_a_run_ends_in_a_plain_checkpoint_and_its_exports(second: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    settings = settings_of(second, write_documents(tmp_path / "texts"), tmp_path / "run")
    changes = {"tuning": {"kind": "lora", "rank": 2}, "training": {"max_steps": 1}, "recipe": "paper"}
    result = run(settings, **changes)
    assert AutoConfig.from_pretrained(result.folder).model_type == "llama"
    assert "was a Baichuan" in (result.folder / "README.md").read_text()

    made = export(second, to="hf", output=tmp_path / "llama", dtype="float32")
    assert_same(AutoModelForCausalLM.from_pretrained(made.folder), baichuan(2, 600))
    # Elsewhere the base has other weights than the additions are to.
    with pytest.raises(ConfigError, match="llama"):
        export(result.folder, to="adapter", output=tmp_path / "adapter")
    export(result.folder, to="adapter", base=str(made.folder), output=tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(made.folder, config=AutoConfig.from_pretrained(tmp_path / "adapter"))
    merged: Any = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    whole = AutoModelForCausalLM.from_pretrained(result.folder)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, whole(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
