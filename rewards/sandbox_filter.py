"""System-call filters for model-written programs, assembled as classic BPF. Standard library only.

A deny-list: what a program of the standard library needs stays allowed, what opens new attack surface does not. It
stands behind namespaces or Landlock, never alone. A denied call fails with EPERM, so honest programs can go on.
"""

from __future__ import annotations

import errno
import platform
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of the machines the tables below know."""

DENIED: dict[str, tuple[int, int]] = {
    # networks; socketpair stays, event loops wake themselves through it
    "socket": (41, 198),
    # other namespaces, mounts, roots
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # large or rarely needed parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "fanotify_init": (300, 262), "quotactl": (179, 60),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "personality": (135, 92),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # shared memory and queues that outlive a process
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116),
}  # fmt: skip
"""Numbers on x86_64 and aarch64, of `asm/unistd_64.h` and `asm-generic/unistd.h`."""

PROCESS_CALLS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
"""Denied as well where a program must stay one process, and must not signal others of its user."""

CLONE, CLONE3, TGKILL = (56, 220), (435, 435), (234, 131)
CLONE_NAMESPACES = 0x7E020080
"""CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in the record the kernel filters: call number, architecture, low half of the first argument."""
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def is_supported() -> bool:
    """Whether the tables know this machine's system calls."""
    return platform.machine() in ARCHITECTURES


def program(*, only_process: int | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        only_process: process id of the program, which may then start threads but no processes, and signal nobody else.

    Raises:
        ValueError: the machine is not known.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise ValueError(f"no table of system calls for {machine!r}, only for {sorted(ARCHITECTURES)}")
    column = list(ARCHITECTURES).index(machine)
    denied = {numbers[column] for numbers in DENIED.values()}
    if only_process is not None:
        denied |= {number for numbers in PROCESS_CALLS.values() if (number := numbers[column]) is not None}
    deny = _instruction(RETURN, ERRNO | errno.EPERM)
    code = [
        _instruction(LOAD, ARCHITECTURE),
        _instruction(EQUAL, ARCHITECTURES[machine], 1, 0),
        _instruction(RETURN, KILL),
    ]
    code.append(_instruction(LOAD, NUMBER))
    if machine == "x86_64":
        code += [_instruction(AT_LEAST, X32_BIT, 0, 1), deny]
    for number in sorted(denied):
        code += [_instruction(EQUAL, number, 0, 1), deny]
    # libc falls back to clone, whose flags can be looked at
    code += [_instruction(EQUAL, CLONE3[column], 0, 1), _instruction(RETURN, ERRNO | errno.ENOSYS)]
    clone = [_instruction(LOAD, FIRST_ARGUMENT), _instruction(ANY_BIT, CLONE_NAMESPACES, 0, 1), deny]
    if only_process is not None:
        clone += [_instruction(ANY_BIT, CLONE_THREAD, 1, 0), deny]
    clone.append(_instruction(RETURN, ALLOW))
    code += [_instruction(EQUAL, CLONE[column], 0, len(clone)), *clone]
    if only_process is not None:
        own = [_instruction(LOAD, FIRST_ARGUMENT), _instruction(EQUAL, only_process, 1, 0), deny]
        code += [_instruction(EQUAL, TGKILL[column], 0, len(own)), *own]
    code.append(_instruction(RETURN, ALLOW))
    return b"".join(code)


def _instruction(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", operation, if_true, if_false, value)
