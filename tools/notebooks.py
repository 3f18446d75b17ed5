"""Execute the chapters, in place or as copies, with outputs that are the same bytes every time.

python tools/notebooks.py                     all chapters in place
python tools/notebooks.py 00_quickstart       one of them
python tools/notebooks.py --into _build/fresh copies of the whole book's sources there
python tools/notebooks.py --jobs 2            two chapters side by side
python tools/notebooks.py --into _build/times --times book/times.yml    keep how long each took

Every chapter computes with one thread, so its outputs do not depend on how many run at a time.
"""

import argparse
import datetime
import os
import shutil
import sys
import time
from pathlib import Path

import joblib
import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("_config.yml", "_toc.yml", "book", "notebooks")


class Client(NotebookClient):
    """Runs cells, and is no front end: it does not answer widgets.

    nbclient's stand-in for an output widget writes to the socket on which its own loop waits for
    the reply to a cell; now and then the loop then sleeps though the reply is there, for ever
    (github.com/jupyter/nbclient/issues/312).
    """

    def on_comm_open_jupyter_widget(self, msg: dict) -> None:
        return None


def execute(path: Path) -> None:
    """Run one notebook and write it back; a failure leaves the file as it was."""
    notebook = nbformat.read(path, as_version=4)
    Client(
        notebook,
        timeout=None if os.environ.get("NORMLIB_SIZE") == "gpu" else 1200,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # what a kernel says of itself is not progress
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    tidy(notebook)
    unfinished = path.with_suffix(".tmp")
    nbformat.write(notebook, unfinished)
    os.replace(unfinished, path)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave nothing in the file that differs between two equal runs."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02d}"
        if cell.cell_type != "code":
            continue
        if "live" in cell.metadata.get("tags", []):
            cell.outputs = []  # a control needs a kernel; a page without one shows the code only
        cell.outputs = merged(cell.outputs)
        cell.metadata.pop("mystnb", None)


def merged(outputs: list) -> list:
    """Neighbouring pieces of one stream as one: where a kernel splits them is chance."""
    found = []
    for output in outputs:
        same = found and output.output_type == found[-1].output_type == "stream"
        if same and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def attempt(path: Path) -> tuple[str, float, str | None]:
    """Run one notebook: its name, the seconds it took, and what went wrong, if something did."""
    start = time.perf_counter()
    try:
        execute(path)
    except (CellExecutionError, CellTimeoutError) as error:
        return path.stem, time.perf_counter() - start, str(error)
    return path.stem, time.perf_counter() - start, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="names such as 00_quickstart; default: all")
    parser.add_argument("--into", type=Path, help="leave the files as they are, execute copies")
    parser.add_argument("--jobs", type=int, default=1, help="how many chapters side by side")
    parser.add_argument("--times", type=Path, help="write the seconds that each took")
    arguments = parser.parse_args()
    os.environ |= {"NORMLIB_PROGRESS": "0", "NORMLIB_JOBS": "1", "OMP_NUM_THREADS": "1"}
    if os.environ.get("NORMLIB_SIZE") == "gpu":
        arguments.jobs = 1  # one device
    folder = ROOT / "notebooks"
    if arguments.into:
        if ROOT / "_build" not in arguments.into.resolve().parents:
            parser.error(f"--into must lie below {ROOT / '_build'}: what is there is replaced")
        shutil.rmtree(arguments.into, ignore_errors=True)
        for name in SOURCES:
            source, target = ROOT / name, arguments.into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
        folder = arguments.into / "notebooks"
    paths = sorted(folder.glob("*.ipynb"))
    if arguments.chapters:
        unknown = set(arguments.chapters) - {p.stem for p in paths}
        if unknown:
            print(f"no such chapter: {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        paths = [p for p in paths if p.stem in arguments.chapters]
    failed, took = [], {}
    tasks = (joblib.delayed(attempt)(path) for path in paths)
    runs = joblib.Parallel(arguments.jobs, return_as="generator_unordered")(tasks)
    for i, (name, seconds, error) in enumerate(runs, start=1):
        said = f"failed after {seconds:.0f} s\n{error}" if error else f"{seconds:.0f} s"
        print(f"[{i}/{len(paths)}] {name}: {said}", flush=True)
        failed += [name] * (error is not None)
        took[name] = round(seconds)
    if failed:
        print(f"failed: {', '.join(failed)}")
    elif arguments.times:
        about = {"date": str(datetime.date.today()), "seconds": dict(sorted(took.items()))}
        arguments.times.write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
