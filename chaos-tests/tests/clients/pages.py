"""An instance for curl: echoes, trailers, events as they happen, long bodies. Speaks HTTP/1.1 by
hand, so that it says exactly what it is meant to. Says where it listens.
"""

import socketserver
import time


class Page(socketserver.StreamRequestHandler):
    def handle(self):
        while self.answer():
            pass

    def answer(self):
        line = self.rfile.readline().decode().split()
        if len(line) != 3:
            return False
        method, path, _ = line
        headers = {}
        while (header := self.rfile.readline().decode().strip()) != "":
            name, value = header.split(":", 1)
            headers[name.lower()] = value.strip()
        body = self.body(headers)
        say = self.wfile.write
        if path == "/echo":
            head = f"HTTP/1.1 200 OK\r\nx-method: {method}\r\ncontent-length: {len(body)}\r\n\r\n"
            say(head.encode() + (b"" if method == "HEAD" else body))
        elif path == "/options":
            say(b"HTTP/1.1 204 No Content\r\nallow: GET, OPTIONS\r\n\r\n")
        elif path == "/trailers":
            say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")
            say(b"4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n")
        elif path == "/events":
            say(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            for number in range(3):
                say(f"data: {number}\n\n".encode())
                time.sleep(0.2)
            return False
        elif path == "/long":
            say(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")
            for _ in range(64):
                say(b"x" * (1 << 20))
        else:
            say(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        return True

    def body(self, headers):
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while (size := int(self.rfile.readline(), 16)) > 0:
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body
        return self.rfile.read(int(headers.get("content-length", "0")))


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


with Server(("127.0.0.1", 0), Page) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
