"""Says where it runs. Stops at SIGTERM, also as the first process of a container."""

import json
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in one packet: apart, the second waits for the first's delayed ACK.
    wbufsize = -1

    def do_GET(self):
        body = json.dumps({"hello": "from python", "host": socket.gethostname()}).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, template, *args):
        print(self.address_string(), template % args, flush=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
Server(("", 8080), Hello).serve_forever()
