"""Ways out of the sandbox that code under test may try; see sandbox_attacks.py for what an attack is."""

from __future__ import annotations

# Reading and writing what is not its own ------------------------------------------------------------------------------

FILES = {
    "read_canary": "def f(x, host):\n    return 'got through ' + open(host['folder'] + '/canary').read()",
    "list_canary": "import os\ndef f(x, host):\n    return 'got through ' + repr(os.listdir(host['folder']))",
    "read_system": (
        "import os\ndef f(x, host):\n    got = []\n    for path in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/etc/hosts', '/proc/version', '/proc/cpuinfo', '/sys/kernel/uevent_seqnum',\n"
        "                 '/var/log/dpkg.log', '/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda'):\n        try:\n            got.append((path, open(path, 'rb').read(10)))\n        except OSError:\n            pass\n"
        "    return 'got through ' + repr(got) if got else None"
    ),
    "list_homes": (
        "import os\ndef f(x, host):\n    got = []\n    for path in ('/root', '/home', os.path.expanduser('~'), '/etc', '/tmp/..', '/proc', '/sys', '/var', '/run', '/dev/shm'):\n        try:\n"
        "            got += [(path, n) for n in os.listdir(path) if n not in ('lib', 'lib64', 'usr', 'etc', 'tmp', 'dev')]\n        except OSError:\n            pass\n"
        "    return 'got through ' + repr([g for g in got if g != ('/etc', 'ld.so.cache')]) if [g for g in got if g != ('/etc', 'ld.so.cache') and g[0] != '/tmp/..'] else None"
    ),
    "read_the_tests": "def f(x, host):\n    return 'got through ' + open(host['here']).read()[:20]",
    "read_installed_packages": (
        "import os, sys\ndef f(x, host):\n    got = []\n    for folder in (os.path.dirname(os.__file__) + '/site-packages', host['packages']):\n"
        "        for at, _, names in os.walk(folder):\n            for n in names:\n                try:\n                    open(os.path.join(at, n)).read(1); return 'got through ' + n\n"
        "                except (OSError, ValueError):\n                    pass\n    return None"
    ),
    "write_canary": "def f(x, host):\n    open(host['folder'] + '/canary', 'w').write('x')\n    return 'got through'",
    "append_canary": "def f(x, host):\n    open(host['folder'] + '/canary', 'a').write('x')\n    return 'got through'",
    "truncate_canary": "import os\ndef f(x, host):\n    os.truncate(host['folder'] + '/canary', 0)\n    return 'got through'",
    "remove_canary": "import os\ndef f(x, host):\n    os.unlink(host['folder'] + '/canary')\n    return 'got through'",
    "rename_canary": "import os\ndef f(x, host):\n    os.rename(host['folder'] + '/canary', host['folder'] + '/moved')\n    return 'got through'",
    "chmod_canary": "import os\ndef f(x, host):\n    os.chmod(host['folder'] + '/canary', 0)\n    return 'got through'",
    "touch_canary": "import os\ndef f(x, host):\n    os.utime(host['folder'] + '/canary', (0, 0))\n    return 'got through'",
    "make_anything": (
        "import os\ndef f(x, host):\n    for place in (host['folder'], '/tmp', '.', '/usr/lib', os.path.dirname(os.__file__)):\n"
        "        for make in (os.mkdir, os.mkfifo, lambda p: os.symlink('/etc', p), lambda p: os.mknod(p), lambda p: os.link(host['folder'] + '/canary', p)):\n"
        "            try:\n                make(place + '/made'); return 'got through'\n            except OSError:\n                pass\n    return None"
    ),
    "write_the_library": "import os\ndef f(x, host):\n    open(os.__file__, 'r+b').write(b'x')\n    return 'got through'",
    "write_sysctl": "def f(x, host):\n    open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')\n    return 'got through'",
    "dotdot": "def f(x, host):\n    return 'got through ' + open('../' * 40 + host['folder'] + '/canary').read()",
    "open_by_descriptor": (
        "import os\ndef f(x, host):\n    d = os.open('/', os.O_PATH)\n    return 'got through ' + os.read(os.open(host['folder'][1:] + '/canary', os.O_RDONLY, dir_fd=d), 9).decode()"
    ),
    "reopen_null": "import os\ndef f(x, host):\n    d = os.open('/dev', os.O_RDONLY)\n    return 'got through ' + repr(os.listdir(d))",
}

# The network, other processes, the kernel ------------------------------------------------------------------------------

SYSTEM = {
    "tcp": "import socket\ndef f(x, host):\n    s = socket.create_connection(('127.0.0.1', host['port']), 0.2)\n    s.sendall(b'x')\n    return 'got through'",
    "tcp_server": "import socket\ndef f(x, host):\n    socket.create_server(('', 0))\n    return 'got through'",
    "udp": "import socket\ndef f(x, host):\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', host['port']))\n    return 'got through'",
    "abstract_socket": "import socket\ndef f(x, host):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0' + host['abstract'])\n    return 'got through'",
    "every_family": (
        "import socket\ndef f(x, host):\n    for family in range(50):\n        for kind in (1, 2, 3, 5):\n            try:\n                socket.socket(family, kind); return f'got through {family}'\n"
        "            except OSError:\n                pass\n    return None"
    ),
    "socketpair": "import socket\ndef f(x, host):\n    socket.socketpair()\n    return 'got through'",
    "look_up_a_name": "import socket\ndef f(x, host):\n    return 'got through ' + socket.gethostbyname('example.com')",
    "daemonise": (
        "import os, time\ndef f(x, host):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            time.sleep(1000)\n        os._exit(0)\n    return 'got through'"
    ),
    "signal_parent": (
        "import os, signal\ndef f(x, host):\n    for pid in (os.getppid(), host['pid'], 1, -1, 0):\n        for s in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):\n            try:\n"
        "                os.kill(pid, s); return 'got through'\n            except OSError:\n                pass\n    return None"
    ),
    "signal_by_owner_of_a_pipe": (
        "import ctypes, fcntl, os, signal\ndef f(x, host):\n    r, w = os.pipe()\n    libc = ctypes.CDLL(None)\n    got = [libc.fcntl(r, 8, os.getppid()), libc.fcntl(r, 10, int(signal.SIGKILL))]\n"
        "    libc.fcntl(r, 4, os.O_ASYNC | os.O_NONBLOCK)\n    os.write(w, b'x')\n    return 'got through' if min(got) >= 0 else None"
    ),
    "limits_of_the_parent": (
        "import os, resource\ndef f(x, host):\n    for pid in (os.getppid(), host['pid']):\n        try:\n            resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)); return 'got through'\n"
        "        except OSError:\n            pass\n    return None"
    ),
    "priority_of_the_parent": (
        "import os\ndef f(x, host):\n    for call in (lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19), lambda: os.sched_setaffinity(os.getppid(), {0})):\n        try:\n"
        "            call(); return 'got through'\n        except OSError:\n            pass\n    return None"
    ),
    "ptrace": (
        "import ctypes, os\ndef f(x, host):\n    libc = ctypes.CDLL(None)\n    for request, pid in ((0, 0), (16, os.getppid()), (0x4206, os.getppid()), (16, host['pid'])):\n"
        "        if libc.ptrace(request, pid, 0, 0) >= 0: return 'got through'\n    return None"
    ),
    "other_memory": (
        "import ctypes, os\ndef f(x, host):\n    libc = ctypes.CDLL(None)\n    buffer = ctypes.create_string_buffer(8)\n    vec = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)\n"
        "    for pid in (os.getppid(), host['pid']):\n        if libc.process_vm_readv(pid, vec, 1, vec, 1, 0) >= 0 or libc.process_vm_writev(pid, vec, 1, vec, 1, 0) >= 0: return 'got through'\n    return None"
    ),
    "system_calls": (
        "import ctypes, os, platform\ndef f(x, host):\n    libc = ctypes.CDLL(None, use_errno=True)\n    got = []\n    buffer = ctypes.create_string_buffer(4096)\n"
        "    common = {'io_uring_setup': 425, 'clone3': 435, 'pidfd_open': 434, 'pidfd_getfd': 438, 'open_tree': 428, 'move_mount': 429, 'fsopen': 430, 'mount_setattr': 442, 'landlock_create_ruleset': 444,\n"
        "              'memfd_secret': 447, 'process_mrelease': 448, 'pidfd_send_signal': 424}\n"
        "    here = {'bpf': 321, 'perf_event_open': 298, 'keyctl': 250, 'add_key': 248, 'userfaultfd': 323, 'unshare': 272, 'setns': 308, 'mount': 165, 'umount2': 166, 'pivot_root': 155, 'chroot': 161,\n"
        "            'kexec_load': 246, 'init_module': 175, 'reboot': 169, 'swapon': 167, 'settimeofday': 164, 'clock_settime': 227, 'adjtimex': 159, 'ptrace': 101, 'kill': 62, 'tgkill': 234, 'tkill': 200,\n"
        "            'rt_sigqueueinfo': 129, 'setuid': 105, 'setgid': 106, 'setresuid': 117, 'capset': 126, 'personality': 135, 'io_setup': 206, 'mq_open': 240, 'msgget': 68, 'semget': 64, 'inotify_init': 253,\n"
        "            'fanotify_init': 300, 'name_to_handle_at': 303, 'open_by_handle_at': 304, 'seccomp': 317, 'prctl': 157, 'syslog': 103, 'acct': 163, 'quotactl': 179, 'ioperm': 173, 'iopl': 172, 'modify_ldt': 154,\n"
        "            'kcmp': 312, 'migrate_pages': 256, 'vmsplice': 278, 'fork': 57, 'vfork': 58, 'timer_create': 222, 'x32_fork': 0x40000039}\n"
        "    for name, number in {**common, **(here if platform.machine() == 'x86_64' else {})}.items():\n"
        "        args = (17, 0, 0) if name == 'clone' else (2, ctypes.addressof(buffer), 4096)\n"
        "        if libc.syscall(number, *args) >= 0 or ctypes.get_errno() not in (1, 38): got.append((name, ctypes.get_errno()))\n"
        "    return 'got through ' + repr(got) if got else None"
    ),
    "clone_by_hand": "import ctypes\ndef f(x, host):\n    return 'got through' if ctypes.CDLL(None).syscall(56, 17 | 0x10000000, 0, 0, 0, 0) >= 0 else None",
    "mount": "import ctypes\ndef f(x, host):\n    return 'got through' if ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else None",
    "chroot": "import os\ndef f(x, host):\n    os.chroot('/usr')\n    return 'got through'",
    "namespaces": (
        "import ctypes\ndef f(x, host):\n    for kind in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000, 0x4000000):\n        if ctypes.CDLL(None).unshare(kind) == 0: return 'got through'\n    return None"
    ),
    "become_root": (
        "import os\ndef f(x, host):\n    if os.getuid() == 0 or os.geteuid() == 0: return 'got through'\n    for call in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0])):\n"
        "        try:\n            call(); return 'got through'\n        except OSError:\n            pass\n    return None"
    ),
    "type_into_a_terminal": (
        "import fcntl, os\ndef f(x, host):\n    for fd in (0, 1, 2):\n        try:\n            fcntl.ioctl(fd, 0x5412, b'x'); return 'got through'\n        except OSError:\n            pass\n"
        "    try:\n        os.open('/dev/tty', os.O_RDWR); return 'got through'\n    except OSError:\n        return None"
    ),
    "outlive_by_session": "import os\ndef f(x, host):\n    os.setsid()\n    return 'got through'",
}
