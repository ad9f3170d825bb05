"""The driver inside the sandbox: it reads the code and one test's input, sets the limits and runs the code.

It is passed to the interpreter as text (`python -c`), since no file of the project is visible there. It isn't trusted:
the code may do anything to it, and the output is judged outside.

Input, on file descriptor 0: the length of a JSON document (8 hexadecimal digits), the document, and then the test's
standard input. The document: `code`, `limits` (names of the module resource), and `call` (entry point, args, kwargs) or
null for a program.

Output, on file descriptor 1: STARTED, then COMPILED or BROKEN, both before the code has run; then a program's output,
or the call's result as one JSON document. A call's result is written to a copy of the descriptor, so that it
isn't mixed with what the code prints.
"""

from __future__ import annotations

STARTED, COMPILED, BROKEN = b"s", b"c", b"b"

# Modules that the driver needs are imported before the code can replace them.
DRIVER = """
import json, os, resource, sys, types

def read(length):
    parts = []
    while length:
        part = os.read(0, min(length, 1 << 16))
        if not part:
            os._exit(1)
        parts.append(part)
        length -= len(part)
    return b"".join(parts)

job = json.loads(read(int(read(8), 16)))
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 2)
for name, most in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (most, most))
os.write(1, b"s")
call = job["call"]
try:
    code = compile(job["code"], "solution.py", "exec", dont_inherit=True)
except BaseException:
    os.write(1, b"b")
    os._exit(1)
os.write(1, b"c")
if call:
    # Only this copy of the pipe is left; a program's own output and input go nowhere.
    out = os.dup(1)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
os.close(nothing)
module = types.ModuleType("solution" if call else "__main__")
sys.modules[module.__name__] = module
sys.argv = ["solution.py"]
exec(code, module.__dict__)
if call:
    result = getattr(module, call["entry_point"])(*call["args"], **call["kwargs"])
    data = json.dumps(result).encode()
    while data:
        data = data[os.write(out, data):]
    os._exit(0)
"""
