"""Programs that stand for Slurm: ``sbatch`` runs a job at once on this machine, ``scontrol requeue`` runs it again."""

import stat
from pathlib import Path

_SBATCH = """#!/usr/bin/env python3
import os, re, subprocess, sys
from pathlib import Path
here = Path(__file__).parent
script = Path(sys.argv[-1])
(here / "scripts").mkdir(exist_ok=True)
text = script.read_text()
count = int((re.search(r"--array=0-(\\d+)", text) or [0, "-1"])[1]) + 1
(here / "scripts" / "last.sh").write_text(text)
print("Submitted batch job 100", flush=True)
for task in range(max(count, 1)):
    own = {"SLURM_JOB_ID": str(200 + task), "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": str(task)}
    if not count:
        own = {"SLURM_JOB_ID": "100"}
    own |= {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    own |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "1"}
    own["SLURM_JOB_NAME"] = "train"
    command = [sys.executable, str(here / "node"), str(script.resolve())]
    subprocess.Popen(command, env={**os.environ, **own}, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""

_NODE = """
import os, subprocess, sys
from pathlib import Path
here, name = Path(__file__).parent, os.environ.get("SLURM_ARRAY_TASK_ID", "0")
for restart in range(3):
    env = {**os.environ, **({"SLURM_RESTART_COUNT": str(restart)} if restart else {})}
    code = subprocess.run(["bash", sys.argv[1]], env=env).returncode
    with (here / "codes.txt").open("a") as file:
        file.write(f"{name} {code}\\n")
    again = here / f"requeue_{name}"
    if not again.exists():
        break
    again.unlink()
(here / f"ended_{name}").touch()
"""

_SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do
  case "$1" in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
"""

_SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && { echo localhost; exit 0; }
here=$(dirname "$0")
echo "$@" >> "$here/scontrol.txt"
touch "$here/requeue_${2##*_}"
"""

_SACCT = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "JobID|State|NodeList"
for task in 0 1 2 3; do
  if [ -e "$here/ended_$task" ]; then echo "100_$task|COMPLETED|localhost"; else echo "100_$task|RUNNING|localhost"; fi
done
"""

_PROGRAMS = {"sbatch": _SBATCH, "srun": _SRUN, "scontrol": _SCONTROL, "sacct": _SACCT, "node": _NODE}


def install(folder: Path) -> Path:
    """Write the programs, and return their folder, which belongs in front of PATH."""
    folder.mkdir()
    for name, text in _PROGRAMS.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder
