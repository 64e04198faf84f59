"""Small tokenizers that read bytes: nothing is lost, and every id can be checked by eye."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.render import Renderer

OPEN = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
TEMPLATES = {
    "chatml": OPEN + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # adds a default system message, as the embedded model's does
    "system": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    + OPEN
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # no stop token anywhere
    "bare": "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content }}{% endif %}{% endfor %}",
    # trims contents, and closes with a space and eos
    "llama": "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content|trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content|trim + ' </s>' }}{% endif %}{% endfor %}",
    # ends the turn with one token and the document with another
    "two_ends": OPEN + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ '</s>' }}{% endif %}",
}
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(
    template: str | None = "chatml", eos: str = "</s>", *, bos_habit: bool = False, space_first: bool = False
):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if space_first:  # as SentencePiece does to every text
        backend.normalizer = normalizers.Prepend(" ")
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    if bos_habit:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos, pad_token=eos)
    tokenizer.chat_template = None if template is None else TEMPLATES.get(template, template)
    return tokenizer


def llama_tokenizer(words=("red", "blue", "is", "sky", "The")):
    """Shaped like Llama 2's: every text gets a space in front, spaces join words, a BOS by habit, no chat template."""
    letters = [chr(code) for code in range(33, 127)] + ["\u2581"]
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters])
    }
    merges = []
    for word in words:
        for whole in (word, "\u2581" + word):
            for end in range(2, len(whole) + 1):
                merge = (whole[: end - 1], whole[end - 1])
                if merge not in merges and whole[:end] not in vocab:
                    vocab[whole[:end]] = len(vocab)
                    merges.append(merge)
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def make_llama_tokenizer():
    return llama_tokenizer


@pytest.fixture(scope="session")
def make_tokenizer():
    return byte_tokenizer


@pytest.fixture(scope="session")
def renderer():
    return Renderer(byte_tokenizer())
