"""What a GPU gives, right and fast: ``python -m benchmarks gpu``, one table in a few minutes.

First every numerical function on fixed inputs: the CPU in float64 against the device in float64 and
in float32, the largest difference relative to the largest number of the result. Then the speed of
grids, populations and sensitivities against the usual way on the same device, by the clock, the
device synchronised before it is read. What is done is on disk after each row.

With ``--device cpu`` all of it runs on the CPU at small sizes: a test of this script, no result.
"""

import argparse
import math
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replication._core.files import write_json
from replication._core.inputs import choose_device
from replication._core.precision import full_precision

FOLDER = Path(__file__).parent
NOTHING_DONE = 77  # the status by which test programs say that they skipped
HEADER = "| what | against | found | wanted | held |\n|---|---|---|---|---|"


def error(found: Sequence[Any], exact: Sequence[Any]) -> float:
    """Return the largest difference of two results, relative to the largest number of its part.

    Infinity where shapes differ, or one holds NaN or infinity and the other another number.
    """
    if len(found) != len(exact):
        return math.inf
    worst = 0.0
    for one, other in zip(found, exact, strict=True):
        a, b = (torch.as_tensor(value).detach().double().cpu() for value in (one, other))
        if a.shape != b.shape:
            return math.inf
        apart = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0)
        if apart.isnan().any():
            return math.inf
        scale = b.abs()[b.isfinite()].max() if b.isfinite().any() else torch.tensor(0.0)
        if apart.numel():
            worst = max(worst, (apart.max() / (scale if scale > 0 else 1)).item())
    return worst


def seconds(
    function: Callable[[], Any],
    device: torch.device,
    repeats: int = 3,
    warm: Callable[[], Any] | None = None,
) -> float:
    """Return the median time by the clock, after a call, or one of `warm`, that does not count."""
    (warm or function)()
    taken = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the floating-point operations a second of a square matrix product, TF32 off."""
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=source).to(device, dtype) for _ in range(2))
    with full_precision():
        return 2 * size**3 / seconds(lambda: a @ b, device, 5)


def correctness(case, device: torch.device) -> dict[str, Any]:
    """Return the row of a case: its errors in both dtypes, and whether they are within bounds."""
    from benchmarks._gpu_inputs import Place

    row: dict[str, Any] = {
        "what": f"{case.function}{': ' * bool(case.what)}{case.what}",
        "against": "CPU, float64" if not case.by_dtype else "CPU, the same dtype",
        "wanted": f"<= {case.float64:.0e}, {case.float32:.0e}",
    }
    try:
        errors, elsewhere = [], False
        for dtype in (torch.float64, torch.float32):
            reference = dtype if case.by_dtype else torch.float64
            exact = list(case.run(Place(torch.device("cpu"), reference)))
            found = list(case.run(Place(device, dtype)))
            errors.append(error(found, exact))
            tensors = [value for value in found if isinstance(value, Tensor)]
            elsewhere |= any(value.device.type != device.type for value in tensors)
        row["found"] = ", ".join(f"{value:.0e}" for value in errors)
        row["found"] += "; came back on another device" * elsewhere
        row["errors"] = errors
        within = errors[0] <= case.float64 and errors[1] <= case.float32
        row["held"] = within and not elsewhere
    except Exception as wrong:  # a row that breaks must not cost the others
        row |= _failure(wrong)
    return {"kind": "correctness", **row}


def speed(measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of a measurement, or one that says how it failed."""
    try:
        return [{"kind": "speed", **row} for row in measure()]
    except Exception as wrong:
        what = {"kind": "speed", "what": measure.__name__, "against": "", "wanted": ""}
        return [{**what, **_failure(wrong)}]


def _failure(wrong: Exception) -> dict[str, Any]:
    traceback.print_exc()
    line = (str(wrong).splitlines() or [""])[0].replace("|", "/")[:120]
    return {"found": f"{type(wrong).__name__}: {line}", "held": False, "failed": True}


def _plain(value: Any) -> Any:
    """Return `value` with a text for each number that JSON has none for."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def about(device: torch.device) -> dict[str, Any]:
    """Return the device's name, the versions that matter and the date."""
    from benchmarks.__main__ import processor

    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    return {
        "device": properties.name if cuda else processor(),
        "memory_gib": round(properties.total_memory / 2**30) if cuda else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "tf32": {  # as the caller's settings have it; the numerics switch it off
            "products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        },
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy")},
        },
        "date": datetime.now(UTC).date().isoformat(),
    }


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip() or None


def main(arguments: Sequence[str], folder: Path = FOLDER) -> int:
    """Print the table and write the JSON; return 1 if a bound on an error is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu: small, as a test")
    parser.add_argument("--out", type=Path, default=folder, help="where its JSON goes")
    options = parser.parse_args(arguments)
    wanted, folder = options.device, options.out
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        print("benchmarks gpu: nothing done: no CUDA device here (--device cpu tests the script)")
        return NOTHING_DONE
    try:
        device = choose_device(wanted)
    except ValueError as wrong:
        parser.error(str(wrong))
    from benchmarks import _gpu_cases, _gpu_speed

    told = about(device)
    name = re.sub(r"[^A-Za-z0-9]+", "-", told["device"] if device.type == "cuda" else "cpu")
    path = folder / f"gpu-{name}.json"
    sizes = _gpu_speed.FULL if device.type == "cuda" else _gpu_speed.SMALL
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()

    def done(new: list[dict[str, Any]]) -> None:
        for row in new:
            rows.append(row)
            held = {True: "yes", False: "no", None: ""}[row["held"]]
            cells = (row["what"], row["against"], row["found"], row["wanted"], held)
            print("| " + " | ".join(cells) + " |", flush=True)
        taken = round(time.perf_counter() - start, 1)
        plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
        write_json(path, {**told, "sizes": sizes.name, "seconds": taken, "rows": plain})

    print(f"{told['device']}; driver {told['driver']}, CUDA {told['cuda']}; {told['versions']}")
    print(HEADER, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers wider than their examples
        for case in _gpu_cases.cases():
            done([correctness(case, device)])
        for measure in _gpu_speed.measurements(device, sizes):
            done(speed(measure))
    beyond = [
        row["what"]
        for row in rows
        if row.get("failed")
        or (row["kind"] == "correctness" and not row["held"])
        or ("bound" in row and not row["error"] <= row["bound"])  # NaN is beyond too
    ]
    below = [row["what"] for row in rows if row["kind"] == "speed" and row["held"] is False]
    print(f"\n{len(rows)} rows in {time.perf_counter() - start:.0f} s; {path}")
    for what, names in (("Beyond their bounds or failed", beyond), ("Below target", below)):
        print(f"{what}: {'; '.join(names) or 'none'}")
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
