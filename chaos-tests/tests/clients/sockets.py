"""WebSocket through the front door, over HTTP/1.1 with `websockets` and on a stream of HTTP/2 (RFC
8441) with raw frames; and how both end when the door closes.

Says where its server listens, is told where the door is, asks itself through it.
"""

import asyncio
import os
import sys

import h2.config
import h2.connection
import h2.events
import websockets

codes = []


async def serve(socket):
    try:
        async for message in socket:
            if message == "leave":
                await socket.close(4001, "asked to")
                return
            await socket.send(message)
    except websockets.ConnectionClosed:
        pass  # With a code of its own, which is what is noted.
    finally:
        codes.append(socket.close_code)


async def until(what, condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


def connect(door):
    host, port = door.rsplit(":", 1)
    return websockets.connect(
        "ws://ws.edge.test/chat", host=host, port=int(port), subprotocols=["talk"]
    )


async def over_http1(door):
    async with connect(door) as socket:
        assert socket.subprotocol == "talk", socket.subprotocol
        for message in ("word", b"\x00\xff", "x" * 300_000, ""):
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
        await socket.send("leave")
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (4001, "asked to")
    async with connect(door) as socket:
        await socket.close(4002)
    await until("the server hears the client's code", lambda: 4002 in codes)


class Stream:
    """One stream that is a WebSocket, on a connection of its own."""

    async def open(self, door):
        host, port = door.rsplit(":", 1)
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.status, self.data, self.over = None, b"", False
        await self.hear(lambda: self.h2.remote_settings.enable_connect_protocol == 1)
        self.h2.send_headers(
            1,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/chat"),
                (":authority", "ws.edge.test"),
                ("sec-websocket-version", "13"),
            ],
        )
        await self.hear(lambda: self.status is not None)

    async def hear(self, enough):
        self.writer.write(self.h2.data_to_send())
        while not enough():
            read = await asyncio.wait_for(self.reader.read(65536), 20)
            assert read, "the connection ended"
            for event in self.h2.receive_data(read):
                if isinstance(event, h2.events.ResponseReceived):
                    self.status = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    self.data += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, h2.events.StreamEnded):
                    self.over = True
            self.writer.write(self.h2.data_to_send())

    def say(self, opcode, payload):
        mask = os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.h2.send_data(1, bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)


async def over_http2(door):
    stream = Stream()
    await stream.open(door)
    assert stream.status[":status"] == "200", stream.status
    assert "upgrade" not in stream.status and "sec-websocket-accept" not in stream.status
    stream.say(1, b"word")
    await stream.hear(lambda: stream.data == b"\x81\x04word")
    stream.say(8, b"\x0f\xa3")
    await stream.hear(lambda: stream.data.endswith(b"\x88\x02\x0f\xa3") and stream.over)
    await until("the server hears the client's code", lambda: 4003 in codes)
    stream.writer.close()


async def until_the_door_closes(door):
    """Opens one of each and says so; both are told to go elsewhere when the door closes."""
    codes.clear()
    stream = Stream()
    await stream.open(door)
    async with connect(door) as socket:
        await socket.send("still here")
        assert await socket.recv() == "still here"
        print("open", flush=True)
        await asyncio.wait_for(socket.wait_closed(), 20)
        assert socket.close_code == 1001, socket.close_code
    # `h2` hears nothing more of a connection that is said to end, so this is read by hand.
    seen = b""
    while not (GOAWAY in kinds(seen) and b"\x88\x02\x03\xe9" in seen):
        read = await asyncio.wait_for(stream.reader.read(65536), 20)
        assert read, "the connection ended"
        seen += read
    stream.writer.write(b"\0\0\x08\0\0\0\0\0\x01" + b"\x88\x82\0\0\0\0\x03\xe9")
    await until("the server heard both", lambda: codes == [1001, 1001])


GOAWAY = 7


def kinds(frames):
    """The types of the frames in `frames`."""
    found = []
    while len(frames) >= 9:
        found.append(frames[3])
        frames = frames[9 + int.from_bytes(frames[:3], "big") :]
    return found


async def main():
    async with websockets.serve(serve, "127.0.0.1", 0, subprotocols=["talk"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        loop = asyncio.get_running_loop()
        door = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
        await over_http1(door)
        await over_http2(door)
        await until_the_door_closes(door)


asyncio.run(main())
