"""gRPC through the front door: all four kinds of call, deadlines, cancellation, metadata, errors.

Says where its server listens, is told where the door is, asks itself through it.
"""

import sys
import threading
from concurrent import futures

import grpc

cancelled = threading.Event()
remaining = []


def unary(request, context):
    remaining.append(context.time_remaining())
    told = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-first", told.get("x-said", "")),))
    context.set_trailing_metadata((("x-last", "end"), ("x-raw-bin", b"\x00\xff")))
    return request


def client_stream(requests, context):
    return b"+".join(requests)


def server_stream(request, context):
    for _ in range(int(request)):
        yield b"x" * 1000


def both(requests, context):
    for request in requests:
        yield request.upper()


def slow(request, context):
    context.add_callback(cancelled.set)
    cancelled.wait(20)
    return request


def endless(request, context):
    context.add_callback(cancelled.set)
    while not cancelled.wait(0.01):
        yield b"tick"


def refuse(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet: 100 %")


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
}


def ask(channel):
    call = channel.unary_unary("/t.T/Unary")
    answer, whole = call.with_call(b"hello", metadata=(("x-said", "word"),), timeout=30)
    assert answer == b"hello", answer
    assert dict(whole.initial_metadata())["x-first"] == "word"
    last = dict(whole.trailing_metadata())
    assert (last["x-last"], last["x-raw-bin"]) == ("end", b"\x00\xff"), last
    assert 0 < remaining[-1] <= 30, remaining
    large = b"x" * (3 << 20)
    assert call(large, timeout=30) == large

    parts = [str(n).encode() for n in range(100)]
    assert channel.stream_unary("/t.T/ClientStream")(iter(parts), timeout=30) == b"+".join(parts)

    got = list(channel.unary_stream("/t.T/ServerStream")(b"500", timeout=30))
    assert len(got) == 500, len(got)

    # Each word is answered before the next one is said.
    said = []
    heard = threading.Semaphore(0)

    def words():
        for word in (b"one", b"two", b"three"):
            yield word
            assert heard.acquire(timeout=20), "no answer while the request is open"

    for word in channel.stream_stream("/t.T/Both")(words(), timeout=30):
        said.append(word)
        heard.release()
    assert said == [b"ONE", b"TWO", b"THREE"], said

    fails(channel, "/t.T/Refuse", grpc.StatusCode.FAILED_PRECONDITION, "not yet: 100 %")
    fails(channel, "/t.T/Nothing", grpc.StatusCode.UNIMPLEMENTED, None)

    fails(channel, "/t.T/Slow", grpc.StatusCode.DEADLINE_EXCEEDED, None, timeout=0.3)
    assert cancelled.wait(20), "the server is told of a deadline that passed"
    cancelled.clear()
    stream = channel.unary_stream("/t.T/Endless")(b"", timeout=30)
    assert next(stream) == b"tick"
    stream.cancel()
    assert cancelled.wait(20), "the server is told of a cancellation"


def fails(channel, method, code, details, timeout=30):
    try:
        channel.unary_unary(method)(b"", timeout=timeout)
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert details in (None, error.details()), error
    else:
        raise AssertionError(f"{method} did not fail")


def main():
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", HANDLERS),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    door = sys.stdin.readline().strip()
    options = (("grpc.default_authority", "rpc.edge.test"),)
    with grpc.insecure_channel(door, options=options) as channel:
        ask(channel)
    server.stop(0)


main()
