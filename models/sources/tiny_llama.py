"""A small random Llama on bytes, for tests, dry runs and machines without a model file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models.sources.source import Description

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyLlama:
    """A random Llama, by default with a tokenizer of bytes, built in memory. Nothing is downloaded.

    Args:
        layers: Number of decoder layers.
        width: Hidden width; the feed-forward width is twice that.
        heads: Number of attention heads; must divide ``width``.
        seed: Seed of the weights.
        spread: Standard deviation of the random weights. A larger value gives a less uniform model.
        positions: Maximum sequence length.
        tokenizer: Folder or hub id of a tokenizer that replaces the bytes.
    """

    layers: int = 2
    width: int = 32
    heads: int = 2
    seed: int = 0
    spread: float = 0.1
    positions: int = 4096
    tokenizer: str | None = None

    def load_model(self) -> transformers.PreTrainedModel:
        tokenizer = self.load_tokenizer()
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.positions,
            initializer_range=self.spread,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.seed)
            return transformers.LlamaForCausalLM(config)

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        if self.tokenizer is not None:
            return transformers.AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=False)
        alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIALS]
        tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<|im_start|>",  # pad = eos, as in SmolLM2: tests then detect code that masks by the pad id
            eos_token="<|im_end|>",
            pad_token="<|im_end|>",
            additional_special_tokens=list(SPECIALS),
            chat_template=CHAT_TEMPLATE,
            model_max_length=self.positions,
            clean_up_tokenization_spaces=False,
        )

    def describe(self) -> Description:
        return Description(f"tiny random Llama ({self.layers} x {self.width}, seed {self.seed})", licence="none needed")
