"""Every input that Triton's language models take, by name: the inputs of the TensorRT-LLM backend's ensemble
and of the vLLM backend, whose sampling parameters count as inputs too."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from router.request.sampling import PLAIN_OPTIONS

__all__ = ["FIELDS", "Field", "Kind"]


class Kind(enum.Enum):
    """The kind of an input's value, whether it came as a tensor, a parameter or JSON."""

    TEXT = "a text"
    TEXTS = "a text or a list of texts"
    WHOLE = "a whole number"
    WHOLES = "a list of whole numbers"
    NUMBER = "a number"
    FLAG = "true or false"
    BIAS = "an object of numbers by token id"
    ANY = "anything"


@dataclass(frozen=True, slots=True)
class Field:
    """One input.

    Attributes:
        option: the option that it sets: a field of ``SamplingOptions``, or one of the switches that
            ``router.doors.kserve.inputs`` knows. Two fields with one option are two names for one thing.
        datatypes: its datatypes as a tensor; the metadata shows the first. Empty: it comes only as a
            parameter.
        refused: whether nothing here serves it; only the values in ``neutral``, which ask for nothing, are
            taken.
        skips_empty: whether empty texts in the list are ignored; TensorRT-LLM's clients send one if they want
            none.
    """

    name: str
    kind: Kind
    option: str
    datatypes: tuple[str, ...] = ()
    refused: bool = False
    neutral: tuple[Any, ...] = ()
    skips_empty: bool = False

    @property
    def is_list(self) -> bool:
        """Whether a tensor of this input may have any number of elements; otherwise it has one."""
        return self.kind in (Kind.TEXTS, Kind.WHOLES)


_INT = ("INT32", "UINT32")  # the ensemble has published its counts as either
_SEED = ("UINT64", "INT64")


def _served() -> tuple[Field, ...]:
    text, texts, whole, number, flag = Kind.TEXT, Kind.TEXTS, Kind.WHOLE, Kind.NUMBER, Kind.FLAG
    return (
        Field("text_input", text, "text_input", ("BYTES",)),
        Field("stream", flag, "stream", ("BOOL",)),
        Field("sampling_parameters", text, "sampling_parameters", ("BYTES",)),
        Field("exclude_input_in_output", flag, "exclude_input_in_output", ("BOOL",)),
        Field("max_tokens", whole, "max_tokens", _INT),
        Field("min_tokens", whole, "min_tokens", _INT),
        Field("min_length", whole, "min_tokens", _INT),
        Field("num_return_sequences", whole, "n", _INT),
        Field("n", whole, "n"),
        Field("stop_words", texts, "stop", ("BYTES",), skips_empty=True),
        Field("stop", texts, "stop"),
        Field("bad_words", texts, "bad_words", ("BYTES",), skips_empty=True),
        Field("stop_token_ids", Kind.WHOLES, "stop_token_ids"),
        Field("end_id", whole, "end_id", _INT),
        Field("temperature", number, "temperature", ("FP32",)),
        Field("top_k", whole, "top_k", _INT),
        Field("top_p", number, "top_p", ("FP32",)),
        Field("repetition_penalty", number, "repetition_penalty", ("FP32",)),
        Field("presence_penalty", number, "presence_penalty", ("FP32",)),
        Field("frequency_penalty", number, "frequency_penalty", ("FP32",)),
        Field("random_seed", whole, "seed", _SEED),
        Field("seed", whole, "seed", _SEED),
        Field("logit_bias", Kind.BIAS, "logit_bias"),
        Field("logprobs", whole, "logprobs"),
        Field("skip_special_tokens", flag, "skip_special_tokens"),
        Field("include_stop_str_in_output", flag, "include_stop_str_in_output"),
        Field("truncate_prompt_tokens", whole, "truncate_prompt_tokens"),
        *(
            Field(f"return_{name}", flag, f"return_{name}", ("BOOL",))
            for name in (
                *("finish_reason", "num_input_tokens", "num_output_tokens", "cumulative_logprob"),
                *("logprobs", "log_probs"),
            )
        ),
        Field("slo_class", text, "slo_class"),
        # Nothing is padded here, so the padding token is never seen.
        Field("pad_id", whole, "pad_id", _INT),
    )


def _refused() -> tuple[Field, ...]:
    def field(name: str, kind: Kind, *datatypes: str, neutral: tuple[Any, ...] = ()) -> Field:
        return Field(name, kind, name, datatypes, refused=True, neutral=neutral)

    off = (False,)
    return (
        field("return_context_logits", Kind.FLAG, "BOOL", neutral=off),
        field("return_generation_logits", Kind.FLAG, "BOOL", neutral=off),
        field("return_perf_metrics", Kind.FLAG, "BOOL", neutral=off),
        field("beam_width", Kind.WHOLE, *_INT, neutral=(1,)),
        # For beam search only; TensorRT-LLM's clients always send 1.
        field("length_penalty", Kind.NUMBER, "FP32", neutral=(0.0, 1.0)),
        field("embedding_bias_words", Kind.TEXTS, "BYTES", neutral=((), ("",))),
        field("detokenize", Kind.FLAG, neutral=(True,)),
        field("spaces_between_special_tokens", Kind.FLAG, neutral=(True,)),
        field("best_of", Kind.WHOLE, neutral=(1,)),
        field("priority", Kind.WHOLE, neutral=(0,)),
        field("use_beam_search", Kind.FLAG, neutral=off),
        *(
            field(name, Kind.ANY, datatype)
            for name, datatype in (
                ("embedding_bias_weights", "FP32"),
                ("decoder_text_input", "BYTES"),
                ("image", "BYTES"),
                ("embedding_request", "BYTES"),
                ("prompt_embedding_table", "FP16"),
                ("prompt_table_extra_id", "UINT64"),
                ("prompt_vocab_size", "INT32"),
                ("lora_task_id", "UINT64"),
                ("lora_weights", "FP16"),
                ("lora_config", "INT32"),
                ("guided_decoding_guide_type", "BYTES"),
                ("guided_decoding_guide", "BYTES"),
            )
        ),
        *(
            field(name, Kind.ANY)
            for name in (
                *("lora_name", "prompt_logprobs", "structured_outputs", "guided_decoding"),
                *("allowed_token_ids", "logits_processors", "output_kind", "extra_args"),
                *("sequence_id", "sequence_start", "sequence_end"),
            )
        ),
    )


def _plain(named: Iterable[Field]) -> Iterator[Field]:
    """The plain options that the backends' inputs do not name: they come as parameters."""
    taken = {field.name for field in named}
    kinds = {bool: Kind.FLAG, int: Kind.WHOLE, float: Kind.NUMBER}
    for name, option in PLAIN_OPTIONS.items():
        if name not in taken:
            yield Field(name, kinds[option.value_kind], name)


FIELDS: Mapping[str, Field] = MappingProxyType(
    {field.name: field for field in (*_served(), *_plain(_served()), *_refused())}
)
"""Every field by its name; the order is that of the metadata."""
