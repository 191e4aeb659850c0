"""Frame and message limits, on bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.emulator.frames import TOO_BIG, UNACCEPTABLE, FrameScanner

TEXT, CONTINUATION, BINARY, CLOSE, PING = 0x1, 0x0, 0x2, 0x8, 0x9


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True) -> bytes:
    mask = b"mask" if masked else b""
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        length = bytes([bit | len(payload)])
    elif len(payload) < 65_536:
        length = bytes([bit | 126]) + len(payload).to_bytes(2)
    else:
        length = bytes([bit | 127]) + len(payload).to_bytes(8)
    return bytes([(0x80 if final else 0) | opcode]) + length + mask + payload


def scanner() -> FrameScanner:
    return FrameScanner(frame_bytes=32_768, message_bytes=131_072)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 32_768])
@pytest.mark.parametrize("masked", [True, False])
def test_a_frame_within_the_limit_passes_unchanged(length: int, masked: bool) -> None:
    whole = frame(TEXT, b"x" * length, masked=masked)
    subject = scanner()
    assert (subject.scan(whole), subject.violation) == (whole, None)


def test_oversized_frame_is_dropped() -> None:
    subject = scanner()
    assert subject.scan(frame(TEXT, b"x" * 32_769)) == b""
    assert subject.violation is not None
    assert subject.violation.code == TOO_BIG


def test_a_message_of_four_frames_is_the_longest() -> None:
    subject = scanner()
    parts = [frame(opcode, b"x" * 32_768, final=False) for opcode in (TEXT, *[CONTINUATION] * 3)]
    assert subject.scan(b"".join(parts)) == b"".join(parts)
    assert subject.violation is None
    assert subject.scan(frame(CONTINUATION, b"x")) == b""
    assert subject.violation is not None
    assert subject.violation.code == TOO_BIG


def test_new_message_resets_the_message_length() -> None:
    subject = scanner()
    for _ in range(10):
        subject.scan(frame(TEXT, b"x" * 32_768))
    assert subject.violation is None


def test_binary_frames_are_rejected() -> None:
    subject = scanner()
    assert subject.scan(frame(BINARY, b"x")) == b""
    assert subject.violation is not None
    assert subject.violation.code == UNACCEPTABLE


def test_after_a_violation_only_control_frames_pass_and_the_first_violation_is_kept() -> None:
    subject = scanner()
    subject.scan(frame(BINARY, b"x"))
    first = subject.violation
    passed = subject.scan(frame(TEXT, b"x" * 100_000) + frame(PING, b"p") + frame(TEXT, b"y") + frame(CLOSE, b"\3\xe8"))
    assert passed == frame(PING, b"p") + frame(CLOSE, b"\3\xe8")
    assert subject.violation is first


frames = st.tuples(
    st.sampled_from([TEXT, CONTINUATION, BINARY, CLOSE, PING]), st.sampled_from([0, 1, 100, 126, 600]), st.booleans()
)


@given(st.lists(frames, max_size=8), st.data())
def test_result_does_not_depend_on_split_points(shapes: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    stream = b"".join(frame(opcode, b"z" * length, masked=masked) for opcode, length, masked in shapes)
    whole = FrameScanner(frame_bytes=500, message_bytes=700)
    passed = whole.scan(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    piecewise = FrameScanner(frame_bytes=500, message_bytes=700)
    assert b"".join(piecewise.scan(piece) for piece in pieces) == passed
    assert piecewise.violation == whole.violation
