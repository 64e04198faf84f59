"""Sources of causal language models and their tokenizers."""

from models.sources.hugging_face import HuggingFace
from models.sources.loaded import Loaded
from models.sources.packaged_gguf import PackagedGGUF
from models.sources.source import Description, ModelSource
from models.sources.tiny_llama import TinyLlama

__all__ = ["Description", "HuggingFace", "Loaded", "ModelSource", "PackagedGGUF", "TinyLlama"]
