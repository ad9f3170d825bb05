"""The system calls that code in the sandbox may make: a seccomp filter for bubblewrap.

The namespaces isolate the code from the machine; the filter forbids what they and the limits leave open:

- Other processes. Memory limits apply per process; with only one process they limit everything. Threads are allowed:
  they share its memory.
- Memory that no process limit counts: memfd, System V shared memory, message queues, and larger socket buffers. Socket
  pairs (asyncio needs one) and pipes are allowed with their default buffers: the number of descriptors limits both.
- Flushing the machine's file caches (sync), which would delay other processes.
- Sockets, namespaces and mounts, other processes' memory, keys, and calls that no solution needs and that have had
  kernel vulnerabilities.

A forbidden call fails with EPERM. Numbers: asm/unistd_64.h and asm-generic/unistd.h of Linux. Form: seccomp(2).
"""

from __future__ import annotations

import errno
import platform
import struct

from gemma_tune.errors import UserError

# AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
# Its flags are in memory, which a filter can't read. ENOSYS makes the C library use clone instead.
_CLONE3 = 435
# Numbers on x86-64 and on arm64; None if there is no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
    "setsockopt": (54, 208), "sync": (162, 81), "syncfs": (306, 267),
    "socket": (41, 198), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "open_by_handle_at": (304, 265),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425), "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "fanotify_init": (300, 262),
}  # fmt: skip

# Classes and operations of BPF: load a word; jump if equal, if greater or equal, if a bit is set; return.
_LOAD, _EQUAL, _AT_LEAST, _BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in struct seccomp_data; both machines are little-endian, so this is an argument's lower half.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x00010000
# Numbers from here on are calls of the x32 ABI.
_X32 = 0x40000000


def syscall_filter(machine: str | None = None) -> bytes:
    """The filter for a machine, an array of struct sock_filter.

    Args:
        machine: As `platform.machine()` returns it; None for this machine.

    Raises:
        UserError: The machine's system call numbers aren't listed here.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UserError(
            f"reward.code: the sandbox knows x86_64 and aarch64, and this is {machine}; leave reward.code.weight at 0."
        )
    which = list(_ARCHITECTURES).index(machine)
    numbers = [n for pair in _REFUSED.values() if (n := pair[which]) is not None]
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    # Instructions: (operation, instructions to skip if true, to skip if false, value).
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        refuse,
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in numbers:
        program += [(_EQUAL, 0, 1, number), refuse]
    program += [
        (_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_BIT, 1, 0, _CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
