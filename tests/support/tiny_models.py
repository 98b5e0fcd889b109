"""Tiny checkpoints with random weights and a real tokenizer, made by transformers and tokenizers."""

from __future__ import annotations

from pathlib import Path

__all__ = ["NUM_TOKENS", "VOCAB_SIZE", "make_tiny_model"]

VOCAB_SIZE = 512  # rows of the embedding; the tokenizer's training may end earlier
NUM_TOKENS = 300  # ids that the tokenizer surely has
_TEXT = [
    "The quick brown fox jumps over the lazy dog. ",
    "def add(self, other):\n    return self.value + other.value\n",
    "What is the capital of France? The capital of France is Paris.\n",
    "Größe, naïve, 東京, 🙂 and other text beyond ASCII.\n",
]
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(
    folder: Path,
    seed: int = 0,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    max_position_embeddings: int = 512,
) -> Path:
    """A Llama checkpoint of about half a megabyte in fp32 with a byte-level tokenizer of 512 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _make_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)  # wide enough that the two best logits are rarely near
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_end|>"}'
    )
    return folder


def _make_tokenizer():  # type: ignore[no-untyped-def]  # tokenizers ships no usable types
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 8, trainer)
    return tokenizer
