"""Tiny tokenizers, made on the spot, that add different things to a text."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, CLS, SEP = 0, 1, 2, 3
SPECIAL = {"<s>": BOS, "</s>": EOS, "[CLS]": CLS, "[SEP]": SEP, "[gMASK]": 4, "<sop>": 5}
FIRST = len(SPECIAL)  # id of the first byte


def build(template=None, *, bos="<s>", eos="</s>", lower=False, merges=()):
    """A tokenizer of bytes with merges, which puts ``template`` around a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if lower:
        backend.normalizer = normalizers.Lowercase()
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=list(SPECIAL.items())
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
