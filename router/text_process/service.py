"""The loop of a model's text process: calls come over a socket, results go back.

Calls are carried out one after the other. A long one gets a process of its own, a copy of this one, so that it holds
nobody up and dies alone if it dies. There are no threads here, which is why copies are safe.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mooring.errors import ArtifactError, InternalError, InvalidRequestError, MooringError, OverloadedError
from mooring.parent import die_with_parent
from mooring.units import MIB
from router.text.frames import MAX_FRAME_BYTES, Frame, FrameKind, FrameReader, pack_frame
from router.text_process.memory import SpareMemory
from router.text_process.model_folder import load_model_text
from router.text_process.model_text import CallResult, ModelText
from router.text_process.vocabulary import write_vocabulary

__all__ = ["serve"]

_READ_BYTES = MIB


def serve(connection: socket.socket, folder: Path) -> None:
    """Reads a model's folder and carries out calls until the server closes the connection."""
    try:
        model = load_model_text(folder)
        content, raw = write_vocabulary(model.tokenizer)
    except MemoryError:
        error = ArtifactError("the model's tokenizer needs more memory than its process may have")
        connection.sendall(_error_frame(0, error))
        return
    except MooringError as error:
        connection.sendall(_error_frame(0, error))
        return
    # Panics of the tokenizers library are no Exception.
    except BaseException as fault:
        connection.sendall(
            _error_frame(0, ArtifactError(f"the model's tokenizer cannot be read: {fault!r:.200}"))
        )
        return
    connection.sendall(pack_frame(0, FrameKind.READY, content, raw))
    del content, raw
    gc.collect()
    gc.freeze()  # what was read stays: it is not to be looked at again, which would copy its pages
    _Service(connection, model).run()


@dataclass(slots=True)
class _LongCall:
    """A long call in its process.

    Attributes:
        answer: bytes of the frame that it has sent so far.
    """

    request_id: int
    pid: int
    answer: bytearray = field(default_factory=bytearray)


class _Service:
    def __init__(self, connection: socket.socket, model: ModelText) -> None:
        self._connection = connection
        self._reader = FrameReader()
        self._long_calls: dict[int, _LongCall] = {}  # by the descriptor that the answer comes from
        self._calls: dict[str, Callable[..., CallResult]] = {
            "encode": model.encode,
            "tokenize": model.tokenize,
            "decode": model.decode,
        }
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def run(self) -> None:
        memory = SpareMemory()
        while self._work():
            memory.give_back()

    def _work(self) -> bool:
        """Waits for what there is to do and does it; returns whether the server is still there."""
        for descriptor, _ in self._poll.poll():
            if descriptor in self._long_calls:
                self._read_answer(descriptor)
            elif descriptor == self._connection.fileno():
                data = self._connection.recv(_READ_BYTES)
                if not data:
                    return False
                for frame in self._reader.feed(data):
                    self._take(frame)
        return True

    def _take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.CALL:
            self._connection.sendall(self._answer(frame))
        elif frame.kind is FrameKind.LONG_CALL:
            self._begin_long(frame)
        elif frame.kind is FrameKind.CANCEL:
            for call in self._long_calls.values():
                if call.request_id == frame.request_id:
                    os.kill(call.pid, signal.SIGKILL)

    def _answer(self, frame: Frame) -> bytes:
        """Carries out a call; the frame of its result or its error."""
        try:
            result = self._calls[frame.content["do"]](frame.content)
            packed = pack_frame(frame.request_id, FrameKind.RESULT, result.content, result.raw)
            if len(packed) <= MAX_FRAME_BYTES:
                return packed
            error: MooringError = InvalidRequestError("The answer would have too many tokens.")
        except MooringError as refused:
            # Kept in a variable of this frame it would keep itself, and all that the call had made.
            return _error_frame(frame.request_id, refused)
        except MemoryError:
            error = InvalidRequestError(
                "The model's tokenizer and chat template need more memory for this request than they may have."
            )
        # Panics of the tokenizers library are no Exception.
        except BaseException as fault:
            error = InternalError(f"the model's tokenizer failed: {fault!r:.200}")
        return _error_frame(frame.request_id, error)

    def _begin_long(self, frame: Frame) -> None:
        ours, theirs = os.pipe()
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no more processes, or no memory for one
            os.close(ours)
            os.close(theirs)
            refused = OverloadedError(f"The server cannot start a process for a long text: {error.strerror}.")
            self._connection.sendall(_error_frame(frame.request_id, refused))
            return
        if pid == 0:
            try:
                die_with_parent(parent_pid)
                self._connection.close()
                os.close(ours)
                with open(theirs, "wb") as pipe:
                    pipe.write(self._answer(frame))
            finally:
                os._exit(0)
        os.close(theirs)
        self._long_calls[ours] = _LongCall(frame.request_id, pid)
        self._poll.register(ours, select.POLLIN)

    def _read_answer(self, descriptor: int) -> None:
        call = self._long_calls[descriptor]
        data = os.read(descriptor, _READ_BYTES)
        if data:
            call.answer += data
            return
        self._poll.unregister(descriptor)
        os.close(descriptor)
        del self._long_calls[descriptor]
        _, status = os.waitpid(call.pid, 0)
        died = pack_frame(call.request_id, FrameKind.DIED, {})
        self._connection.sendall(call.answer if status == 0 and call.answer else died)


def _error_frame(request_id: int, error: MooringError) -> bytes:
    content = {"code": error.code, "message": error.message, "param": error.param}
    return pack_frame(request_id, FrameKind.ERROR, content)
