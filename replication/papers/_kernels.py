"""Kernels that need neither a network nor a registered kernel spec.

Jupyter reaches kernels by TCP, for which a machine cut off from the network (``unshare -n``) may
lack the loopback interface, and takes whatever kernel is registered as ``python3``.
"""

import os
import shutil
import tempfile
import weakref

LONGEST = 70  # characters of a folder in which the path of a socket stays within the 104 allowed


def local(base: type) -> type:
    """Return a kernel manager derived from `base` whose kernels are reached by Unix sockets."""
    if os.name != "posix":
        return base
    from traitlets import default

    class Local(base):
        @default("transport")
        def _sockets(self) -> str:
            return "ipc"

        @default("ip")
        def _socket_path(self) -> str:
            # Jupyter's own choice is relative to a working directory that is not the kernel's.
            short = len(tempfile.gettempdir()) < LONGEST
            folder = tempfile.mkdtemp(prefix="kernel-", dir=None if short else "/tmp")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            return os.path.join(folder, "socket")

    return Local


def own() -> type:
    """Return a kernel manager whose ``python3`` is this interpreter, whatever is registered."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    class Own(local(AsyncKernelManager)):
        @default("kernel_spec_manager")
        def _own_interpreter(self) -> KernelSpecManager:
            # With no folder to look in, only the kernel of the running interpreter is left.
            return KernelSpecManager(parent=self, kernel_dirs=[], ensure_native_kernel=True)

    return Own
