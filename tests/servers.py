"""An OpenAI-compatible address on this machine that answers as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server:
    """A chat endpoint on a free port; script: what the first tries of a prompt meet, then it echoes the prompt."""

    def __init__(self):
        self.script, self.tries, self.seen, self.wait = [], Counter(), [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.answer(self, body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.wait.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        prompt = body["messages"][-1]["content"]
        self.seen.append({"path": handler.path, "key": handler.headers.get("Authorization"), **body})
        turn = self.tries[prompt]
        self.tries[prompt] += 1
        script = self.script(prompt) if callable(self.script) else self.script
        step = script[turn] if turn < len(script) else completion(f"re: {prompt}")
        if step == "close":
            return handler.connection.close()
        if step == "slow":
            self.wait.wait(5)
            return handler.connection.close()
        if step == "drip":  # a body that never ends
            handler.send_response(200)
            handler.end_headers()
            try:
                while not self.wait.wait(0.02):
                    handler.wfile.write(b" ")
            except OSError:
                pass
            return None
        status, headers, data = step if isinstance(step, tuple) else (200, {}, step)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data) + (50 if step == CUT else 0)))
        handler.end_headers()
        handler.wfile.write(data)
        return None


CUT = (200, {}, b'{"choices": [')  # says it is 50 bytes longer
