"""What the scripted engine of the gRPC doors' tests says."""

from __future__ import annotations

from mooring.errors import OverloadedError, WorkerLostError
from router.request.request import GenerationRequest
from support.router_doors import ScriptedStream, byte_level_tokenizer, one_token_a_step

TOKENIZER = byte_level_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")
ANSWER = "hello 🦀!"
ANSWER_IDS = [*TOKENIZER.encode(ANSWER, add_special_tokens=False).ids, END]


def answer(request: GenerationRequest) -> ScriptedStream:
    """Says the answer, or plays out what the prompt asks for."""
    text = TOKENIZER.decode(list(request.prompt_ids))
    steps = one_token_a_step(request, ANSWER_IDS, stop_token_id=END)
    if "full" in text:
        raise OverloadedError("The queue is full.", retry_after_s=2.5)
    if "too long" in text:
        raise OverloadedError("It would take too long.", predicted_wait_s=1.2345, should_retry=False)
    if "fail later" in text:
        return ScriptedStream([*steps[:3], WorkerLostError("The worker died twice.")])
    if "predict" in text:
        return ScriptedStream(steps, predicted_ttft_s=0.125 * len(request.prompt_ids))
    if "bug" in text:
        raise ZeroDivisionError("a bug")
    return ScriptedStream(steps, pause_s=30 if "hang" in text else 0.02 if "slow" in text else 0)
