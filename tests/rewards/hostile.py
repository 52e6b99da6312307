"""Programs of ill intent, by what they try. None of them earns anything or leaves anything behind."""

from __future__ import annotations

NAME = "braid-hostile"
"""What processes that should not outlive their program call themselves."""

_PREAMBLE = f"""
import ctypes, os, sys, time
def CHILD(): os.execv(sys.executable, ['{NAME}', '-c', 'import time; time.sleep(300)'])
"""

_BODIES: dict[str, str] = {
    "early exit": """
import os; os._exit(0)
""",
    "polite exit": """
raise SystemExit(0)
""",
    "forged records": """
print('[0, 3]'); print('[1, 10]')
""",
    "forged descriptor": """
import os
for fd in range(3, 64):
    try: os.write(fd, b'[0, 3]\\n[1, 10]\\n')
    except OSError: pass
""",
    "equal to all": """
class E(int):
    __eq__ = lambda *_: True
def add(a, b): return E(0)
""",
    "patched json": """
import json
json.dumps = lambda *a, **k: '[0, 3]'
def add(a, b): return 0
""",
    "exec of true": """
import os; os.execv('/usr/bin/true', ['true'])
""",
    "signal to all": """
import os, signal
os.kill(-1, signal.SIGKILL)
""",
    "signal to parent": """
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
""",
    "ignored signals": """
import signal, time
for s in range(1, 32):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(1)
""",
    "busy loop": """
while True: pass
""",
    "native loop": """
x = 3 ** (10 ** 9)
""",
    "sleep": """
import time; time.sleep(300)
""",
    "daemon": """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: CHILD()
    os._exit(0)
""",
    "orphan with the pipe": """
import os, sys
if os.fork() == 0: CHILD()
os._exit(0)
""",
    "fork bomb": """
import os, sys
for _ in range(300):
    try:
        if os.fork() == 0: CHILD()
    except OSError: break
while True: pass
""",
    "endless forks": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "thread bomb": """
import threading, time
while True: threading.Thread(target=time.sleep, args=(300,)).start()
""",
    "big block": """
x = bytearray(1 << 40)
""",
    "memory growth": """
x = []
while True: x.append(bytearray(1 << 20))
""",
    "forked memory": """
import os
for _ in range(4): os.fork()
x = bytearray(300 << 20)
while True: pass
""",
    "flood of output": """
while True: print('x' * 10000)
""",
    "flood of errors": """
import os
while True: os.write(2, b'\\xff\\x1b[2J' * 1000)
""",
    "many files": """
i = 0
while True:
    open(f'/tmp/{i}', 'w').write('x'); i += 1
""",
    "one big file": """
f = open('/tmp/big', 'wb')
while True: f.write(bytes(1 << 20))
""",
    "shared memory": """
import mmap
x = open('/dev/shm/x', 'wb')
while True: x.write(bytes(1 << 20))
""",
    "deep result": """
def add(a, b):
    x = []
    for _ in range(900): x = [x]
    return x
""",
    "huge number": """
def add(a, b): return 10 ** 4000
""",
    "not a number": """
def add(a, b): return float('nan')
""",
    "deep recursion": """
import sys
sys.setrecursionlimit(10 ** 9)
f = lambda: f()
f()
""",
    "network": """
import socket, urllib.request
urllib.request.urlopen('http://169.254.169.254/', timeout=1)
""",
    "debugger": """
import ctypes, os
print(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)); os.abort()
""",
    "namespaces": """
import ctypes
while ctypes.CDLL(None).unshare(0x10000000) == 0: pass
raise SystemExit(1)
""",
    "secrets": """
import os
print(open('/proc/1/environ').read(), os.listdir('/root'), open('/etc/shadow').read())
""",
    "crash": """
import ctypes; ctypes.string_at(0)
""",
}

PROGRAMS = {attempt: _PREAMBLE + body for attempt, body in _BODIES.items()}
