"""A tokenizer whose tokens are bytes, so that a test can say what they must be."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BEGIN, END = 256, 257


def byte_tokenizer(*, begin: bool = False, end: bool = False, named: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, token id 0 to 255 in the order of the alphabet, with a begin and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    engine = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<begin>", "<end>"])
    template = ["<begin>"] * begin + ["$A"] + ["<end>"] * end
    engine.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[("<begin>", BEGIN), ("<end>", END)]
    )
    names = {"bos_token": "<begin>", "eos_token": "<end>"} if named else {}
    return PreTrainedTokenizerFast(tokenizer_object=engine, **names)
