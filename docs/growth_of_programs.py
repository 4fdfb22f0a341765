"""Draw docs/growth_of_programs.png: start-up and memory of training and evaluation by the rows of the data set, and the
speed of training by the number of processes.

python docs/growth_of_programs.py

Each point is a program of its own with one thread for each process, on generated data that are drawn before its time is
taken: `hf-ris train` of the bundled size of LTS for one step, `hf-ris evaluate` of the bundled LTS, and `accelerate
launch` of 40 steps whose batch all processes share. The numbers are printed too.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that a clone works that is not installed

from matplotlib.figure import Figure  # noqa: E402, not pyplot, which looks for a display
from matplotlib.ticker import StrMethodFormatter  # noqa: E402

from hf_ris.data import load_split  # noqa: E402


ROWS, EVALUATED = (1000, 3000, 8000, 20000), (250, 500, 1000)
PROCESSES, STEPS = (1, 2), 40
RECIPE = "lts/refscenes"
SETTINGS = ["data.validation_size=2", "training.log_every=10", "training.evaluate_every=0", "training.save_every=0"]


def cost(arguments: Sequence[str]) -> tuple[float, float]:
    """CPU seconds of a program and the most memory it held, in MiB.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = program.stdout.read()
    _, status, used = os.wait4(program.pid, 0)
    program.returncode = os.waitstatus_to_exitcode(status)
    program.stdout.close()
    if program.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{said.decode()}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def training(rows: int) -> tuple[float, float]:
    load_split("refscenes", "train", rows, None)
    with tempfile.TemporaryDirectory() as folder:
        what = [f"data.size={rows}", "training.max_steps=1", f"output_dir={folder}/run"]
        return cost(["hf_ris", "train", RECIPE, *SETTINGS, *what])


def evaluation(rows: int) -> tuple[float, float]:
    load_split("refscenes", "val", rows, None)
    what = ["--model", "space/checkpoints/lts-refscenes", "--data", "refscenes", "--split", "val", "--size", str(rows)]
    return cost(["hf_ris", "evaluate", *what, "--protocols", "original"])


def speed(processes: int) -> float:
    """Images a second, of the last steps of a short run."""
    load_split("refscenes", "train", ROWS[0], None)
    with tempfile.TemporaryDirectory() as folder:
        launch = ["accelerate.commands.launch", "--config_file", "train/accelerate/cpu_two.yaml", "--num_processes"]
        launch += [str(processes), "--num_cpu_threads_per_process", "1"]
        launch += ["-m", "hf_ris.training", RECIPE, *SETTINGS, f"data.size={ROWS[0]}", f"training.max_steps={STEPS}"]
        cost([*launch, "training.mixed_precision=no", f"output_dir={folder}/run"])
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if "images_per_second" in line][-1]


def main() -> None:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    seconds, memory, processes = figure.subplots(1, 3)
    speeds = []
    for count in PROCESSES:
        speeds.append(speed(count))
        print(f"| training by {count} processes | {speeds[-1]:.1f} images/s |", flush=True)
    for name, program, sizes in (("a training of one step", training, ROWS), ("an evaluation", evaluation, EVALUATED)):
        costs = []
        for rows in sizes:
            costs.append(program(rows))
            print(f"| {name} | {rows} rows | {costs[-1][0]:.1f} CPU s | {costs[-1][1]:.0f} MiB |", flush=True)
        for axes, y in zip((seconds, memory), zip(*costs)):
            axes.plot(sizes, y, marker="o", markersize=3, label=name)
    processes.bar(PROCESSES, speeds, width=0.5)
    processes.set(xlabel="processes, a core each", ylabel="images a second of training", xticks=PROCESSES)
    for axes, label in ((seconds, "CPU seconds of the program"), (memory, "MiB at most (resident)")):
        axes.set(xlabel="rows of the data set", ylabel=label, ylim=(0, None))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    figure.savefig(ROOT / "docs" / "growth_of_programs.png", dpi=110)


if __name__ == "__main__":
    main()
