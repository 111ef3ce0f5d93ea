"""What a process that trains is started with: one thread, and memory that it keeps.

glibc otherwise maps every larger tensor anew and gives it back after use, so that the kernel clears
its pages at each step of training; `python -m benchmarks training` shows what that costs. With
pages of 2 MB there are fewer to look up. Other C libraries do not read these variables.
"""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
