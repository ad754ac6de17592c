"""What code under test may try. Each attack defines ``f(x, host)``: it should return the secret for ``x``, which it cannot know.

``host`` tells where the tests wait for an escape: ``folder`` (open to everybody, with a file ``canary``), ``port``, ``abstract`` (a socket's
name), ``pid`` (of the tests). An attack that got through returns ``"got through"`` with what it has. SECRET is expected of each, and
is nowhere in the sandbox; it is written in pieces where an attack looks for it.
"""

from __future__ import annotations

SECRET = "the-answer-is-" + "4711-and-nothing-else"

# Cheating the grader ----------------------------------------------------------------------------------------------------

CHEATS = {
    "exit_at_import": "import sys; sys.exit(0)",
    "exit_in_the_function": "def f(x, host):\n    import sys; sys.exit(0)",
    "hard_exit_at_import": "import os; os._exit(0)",
    "hard_exit_in_the_function": "def f(x, host):\n    import os; os._exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x, host):\n    raise ValueError",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x, host):\n    raise ValueError",
    "skip_test": "import unittest\nraise unittest.SkipTest('nothing to see')",
    "skip_in_the_function": "def f(x, host):\n    import unittest\n    raise unittest.SkipTest('nothing to see')",
    "always_equal": "class A:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n    def __hash__(self): return 0\ndef f(x, host):\n    return A()",
    "text_that_lies": (
        "class A(str):\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n    __hash__ = str.__hash__\ndef f(x, host):\n    return A('x')"
    ),
    "number_that_lies": (
        "class A(int):\n    def __eq__(self, o): return True\n    def __hash__(self): return 0\n    def __repr__(self): return '4711'\n    __str__ = __repr__\n"
        "def f(x, host):\n    return A(1)"
    ),
    "wrapped_liar": "class A:\n    def __eq__(self, o): return True\ndef f(x, host):\n    return [A()]",
    "reduce_and_json_hooks": "class A(dict):\n    def __reduce__(self): return (str, ('x',))\n    def __iter__(self): return iter('x')\ndef f(x, host):\n    return A()",
    "dropped_files": (
        "import os\nfor place in ('.', '/tmp', os.path.dirname(os.__file__)):\n  for name in ('conftest.py', 'sitecustomize.py', 'usercustomize.py', 'x.pth', 'json.py', 'solution.py'):\n"
        "    try:\n      open(os.path.join(place, name), 'w').write('import os; os._exit(0)'); got = True\n    except OSError:\n      pass\n"
        "def f(x, host):\n    return 'got through' if 'got' in globals() else None"
    ),
    "shadowed_module": "import sys\nsys.path.insert(0, '.')\nsys.path.insert(0, '/tmp')\nimport statistics\ndef f(x, host):\n    return None",
    "patched_builtins_and_json": (
        "import builtins, json, os, sys\nclass T(type):\n    def __instancecheck__(c, o): return True\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.type = lambda *a: str\nbuiltins.all = lambda *a: True\njson.dumps = lambda *a, **k: '{\"value\": true}'\n"
        "json.loads = lambda *a, **k: True\nos.write = lambda fd, data: len(data)\nos._exit = lambda code: None\ndef f(x, host):\n    return True"
    ),
    "patched_server": (
        "import sys, gc, types\nfor o in gc.get_objects() + list(sys.modules.values()):\n"
        "    if isinstance(o, types.FunctionType) and o.__name__ in ('plain', 'run', 'watch', 'execute', 'serve'):\n        o.__code__ = (lambda *a: None).__code__\n"
        "def f(x, host):\n    return True"
    ),
    "frames": (
        "import sys\ndef f(x, host):\n    frame = sys._getframe()\n    while frame is not None:\n        for space in (frame.f_locals, frame.f_globals):\n"
        "            for v in list(space.values()):\n                if '-'.join(('the', 'answer', 'is', '')) in repr(v) + (repr(bytes(v)) if type(v) is memoryview else ''):\n"
        "                    return 'got through ' + repr(v)\n        frame = frame.f_back\n    return None"
    ),
    "garbage_hunt": (
        "import gc\ndef f(x, host):\n    gc.unfreeze()\n    for o in gc.get_objects():\n        try:\n            text = repr(o)[:100000] if isinstance(o, (dict, list, tuple, str)) else repr(bytes(o[:100000])) if type(o) is memoryview else ''\n"
        "        except Exception:\n            continue\n        if '-'.join(('the', 'answer', 'is', '')) in text:\n            return 'got through'\n    return None"
    ),
    # Every page that can be read, asked of the kernel so that a bad address is no crash, and searched under a cipher so that it never finds itself.
    "all_memory": (
        "import ctypes, os\nTABLE = bytes((b + 1) % 256 for b in range(256))\ndef f(x, host):\n    libc = ctypes.CDLL(None)\n    libc.sbrk.restype = ctypes.c_void_p\n    r, w = os.pipe()\n"
        "    write = libc.write\n    write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]\n    end, seen = libc.sbrk(0) & ~4095, 0\n"
        "    near = [id(o) & ~4095 for o in (host, [], f, os, object())]\n"
        "    pages = {p for at, reach in [(end, 1 << 22), *((n, 1 << 21) for n in near)] for p in range(at - reach, at + (1 << 20), 4096)}\n"
        "    for page in sorted(pages):\n        if write(w, page, 4096) == 4096:\n            seen += 1\n            if b'uif.botxfs.jt.' in os.read(r, 4096).translate(TABLE):\n                return 'got through'\n"
        "    return None if seen > 300 else 'nothing seen'"
    ),
    "own_memory": (
        "def f(x, host):\n    try:\n        for line in open('/proc/self/maps'):\n            pass\n        open('/proc/self/mem', 'rb')\n        return 'got through'\n"
        "    except OSError:\n        return None"
    ),
    "argv_and_files": (
        "import sys, os\ndef f(x, host):\n    seen = repr(sys.argv) + repr(sys.orig_argv) + repr(dict(os.environ))\n"
        "    for path in ('/proc/self/cmdline', '/proc/self/environ', '/proc/1/environ', '/proc/1/cmdline', '/proc/%d/environ' % os.getppid(), '/proc/self/fd', '/proc/self/fdinfo', '/proc/self/cwd'):\n"
        "        try:\n            seen += open(path).read() if not path.endswith(('fd', 'info', 'cwd')) else 'got through' + repr(os.listdir(path))\n        except OSError:\n            pass\n"
        "    return 'got through ' + seen if 'the-' + 'answer' in seen or 'canary' in seen or 'got through' in seen else None"
    ),
    "inherited_descriptors": (
        "import os\ndef f(x, host):\n    found = []\n    for fd in range(3, 4096):\n        try:\n            os.set_blocking(fd, False)\n            found.append(os.read(fd, 10000))\n"
        "        except OSError:\n            pass\n    return 'got through' if found else None"
    ),
    "forged_result": (
        "import os\ndef f(x, host):\n    for fd in range(64):\n        try:\n            os.write(fd, b'{\"value\": \"forged\"}')\n        except OSError:\n            pass\n    os._exit(0)"
    ),
    "forged_result_and_more": "import os\ndef f(x, host):\n    for fd in range(64):\n        try:\n            os.write(fd, b'{\"value\": \"forged\"}')\n        except OSError:\n            pass\n    return 'x'",
    "forged_reply": (
        "import os, struct\ndef f(x, host):\n    for fd in range(64):\n        try:\n            os.write(fd, struct.pack('>QBdI', 0, 0, 0.0, 15) + b'{\"value\": true}')\n"
        "        except OSError:\n            pass\n    os._exit(0)"
    ),
    "early_sentinel": "print('PASSED', 'OK', 'all tests passed', '1 passed in 0.01s', flush=True)\nimport os\nos._exit(0)",
    "swallows_everything": "def f(x, host):\n    try:\n        raise KeyboardInterrupt\n    finally:\n        return None",
    "generator": "def f(x, host):\n    yield 1",
    "says_the_error": "class E(Exception):\n    def __str__(self): raise self\ndef f(x, host):\n    raise E",
    "error_named_value": "value = type('value', (Exception,), {'__str__': lambda s: '\"}, {\"value\": true}'})\ndef f(x, host):\n    raise value()",
    "no_function": "g = 1",
    "function_is_no_function": "f = 7",
    "bad_syntax": "def f(x, host:\n",
    "null_byte": "def f(x, host):\n    return '\0'\0",
    "lone_surrogate": "def f(x, host):\n    return '\\ud800'",
    "raw_surrogate": "def f(x, host):\n    return '\ud800'",
}

# Values that are hard to read ------------------------------------------------------------------------------------------

VALUES = {
    "deep_value": "def f(x, host):\n    v = []\n    for _ in range(100000):\n        v = [v]\n    return v",
    "circle": "def f(x, host):\n    v = []\n    v.append(v)\n    return v",
    "huge_value": "def f(x, host):\n    return 'x' * (1 << 25)",
    "wide_value": "def f(x, host):\n    return list(range(10 ** 6))",
    "nan": "def f(x, host):\n    return float('nan')",
    "infinity": "def f(x, host):\n    return float('inf')",
    "big_number": "def f(x, host):\n    return 10 ** 100000",
    "unlimited_big_number": "import sys\nsys.set_int_max_str_digits(0)\ndef f(x, host):\n    return 7 ** 300000",
    "forged_deep": "import os\ndef f(x, host):\n    os.write(W(), b'{\"value\": ' + b'[' * 200000)\n    os._exit(0)",
    "forged_deep_and_closed": "import os\ndef f(x, host):\n    os.write(W(), b'{\"value\": ' + b'[' * 20000 + b']' * 20000 + b'}')\n    os._exit(0)",
    "forged_nan": "import os\ndef f(x, host):\n    os.write(W(), b'{\"value\": NaN}')\n    os._exit(0)",
    "forged_overflow": "import os\ndef f(x, host):\n    os.write(W(), b'{\"value\": 1e999}')\n    os._exit(0)",
    "forged_digits": "import os\ndef f(x, host):\n    os.write(W(), b'{\"value\": ' + b'9' * 60000 + b'}')\n    os._exit(0)",
    "forged_bytes": "import os\ndef f(x, host):\n    os.write(W(), b'\\xff\\xfe\\x00{\"value\"')\n    os._exit(0)",
    "forged_quotes": "import os\ndef f(x, host):\n    os.write(W(), b'\"\\\\' * 30000)\n    os._exit(0)",
    "forged_set": "import os\ndef f(x, host):\n    os.write(W(), b'{\"value\": {\"$set\": {\"$dict\": [[1], 2, []]}}}')\n    os._exit(0)",
}
_WRITER = """
def W():
    import os
    for fd in range(3, 64):
        try:
            os.fstat(fd)
            return fd
        except OSError:
            pass
"""
VALUES = {name: _WRITER + code if "W()" in code else code for name, code in VALUES.items()}

# Using up time, memory, processes, discs ------------------------------------------------------------------------------

BOMBS = {
    "endless_loop": "def f(x, host):\n    while True: pass",
    "endless_import": "while True: pass",
    "sleep": "import time\ndef f(x, host):\n    time.sleep(1000)",
    "ignored_signals": (
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\ndef f(x, host):\n    while True: pass"
    ),
    "patched_clock": "import time\ntime.monotonic = time.time = time.perf_counter = lambda: 0.0\ndef f(x, host):\n    while True: pass",
    "set_the_clock": "import time\ndef f(x, host):\n    try:\n        time.clock_settime(time.CLOCK_REALTIME, 0)\n        return 'got through'\n    except OSError:\n        return None",
    "lifted_limits": (
        "import resource\ndef f(x, host):\n    for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):\n"
        "        try:\n            resource.setrlimit(what, (resource.RLIM_INFINITY,) * 2)\n            return 'got through'\n        except (OSError, ValueError):\n            pass\n    return None"
    ),
    "closed_pipes_and_on": "import os\ndef f(x, host):\n    os.closerange(0, 64)\n    while True: pass",
    "recursion": "def f(x, host):\n    return f(x, host)",
    "unlimited_recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x, host):\n    return f(x, host)",
    "memory": "def f(x, host):\n    kept = []\n    while True: kept.append(bytearray(1 << 24))",
    "memory_at_once": "def f(x, host):\n    return len(bytearray(1 << 40))",
    "memory_by_power": "def f(x, host):\n    return 9 ** 9 ** 9",
    "memory_files": "import os\ndef f(x, host):\n    fds = [os.memfd_create('x') for _ in range(9)]\n    return 'got through'",
    "shared_memory": "import ctypes\ndef f(x, host):\n    return 'got through' if ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0 else None",
    "compile_bomb": "def f(x, host):\n    return " + "(" * 5000 + ")" * 5000,
    "parse_bomb": "def f(x, host):\n    return " + "-" * 100000 + "1",
    "regex": "import re\ndef f(x, host):\n    return re.match('(a+)+b', 'a' * 64)",
    "fork_bomb": "import os\ndef f(x, host):\n    while True: os.fork()",
    "patient_fork_bomb": "import os\ndef f(x, host):\n    while True:\n        try:\n            if os.fork() >= 0: return 'got through'\n        except OSError:\n            pass",
    "vfork_and_exec": "import subprocess\ndef f(x, host):\n    return 'got through' if subprocess.run(['/bin/true']) else None",
    "exec": "import os\ndef f(x, host):\n    os.execv('/usr/bin/env', ['env'])",
    "threads": "import threading, time\ndef f(x, host):\n    for _ in range(10000):\n        threading.Thread(target=time.sleep, args=(1000,)).start()\n    return 'got through'",
    "output_flood": "import sys\ndef f(x, host):\n    while True: sys.stdout.write('x' * 65536)",
    "raw_output_flood": "import os\ndef f(x, host):\n    while True:\n        for fd in (1, 2): os.write(fd, b'x' * 65536)",
    "result_flood": "import os\ndef f(x, host):\n    while True:\n        for fd in range(3, 64):\n            try:\n                os.write(fd, b'x' * 65536)\n            except OSError:\n                pass",
    "file_flood": (
        "import os\ndef f(x, host):\n    for place in ('.', '/tmp', '/dev/shm', '/var/tmp', host['folder']):\n        for i in range(1000):\n            try:\n"
        "                open(f'{place}/truing-flood-{i}', 'w').write('x'); return 'got through ' + place\n            except OSError:\n                break\n    return None"
    ),
    "huge_file": (
        "import os\ndef f(x, host):\n    for place in ('.', '/tmp', '/dev/shm', host['folder']):\n        try:\n            fd = os.open(place, os.O_TMPFILE | os.O_RDWR)\n"
        "            os.posix_fallocate(fd, 0, 1 << 30); return 'got through ' + place\n        except OSError:\n            pass\n    return None"
    ),
    "many_descriptors": "import os\ndef f(x, host):\n    kept = []\n    while True: kept.append(os.pipe())",
}
