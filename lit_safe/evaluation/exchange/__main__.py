"""Converts responses between our Parquet file, lm-evaluation-harness and Inspect.

python -m lit_safe.evaluation.exchange --read samples_task.jsonl --written_by lm_eval --write responses.parquet
python -m lit_safe.evaluation.exchange --read responses.parquet --write samples.jsonl --write_as inspect
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from lit_safe.evaluation.exchange import inspect_log, lm_eval, parquet

Format = Literal["lm_eval", "inspect", "parquet"]


def exchange(
    read: str,
    write: str,
    written_by: Format = "parquet",
    write_as: Format = "parquet",
    prompt: str = "prompt",
) -> int:
    """Read responses in one format and write them in another.

    Args:
        read: File to read.
        write: File to write; it is replaced.
        written_by: Format of the file to read: lm_eval, inspect, or parquet (ours).
        write_as: Format of the file to write.
        prompt: Of lm_eval: the key of a document with the user's text.

    Returns:
        The number of responses.

    Raises:
        ValueError: If the file is not in its format. The message names the line.
        FileNotFoundError: If there is no such file.
    """
    source, target = Path(read), Path(write)
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    if written_by == "lm_eval":
        rows = lm_eval.read(source, prompt)
    else:
        rows = {"inspect": inspect_log.read, "parquet": parquet.read}[written_by](source)
    {"lm_eval": lm_eval.write, "inspect": inspect_log.write, "parquet": parquet.write}[write_as](rows, target)
    return len(rows)


def main(args: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_safe.evaluation.exchange", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--read", required=True, help="file to read")
    parser.add_argument("--written_by", choices=get_args(Format), default="parquet", help="its format")
    parser.add_argument("--write", required=True, help="file to write; it is replaced")
    parser.add_argument("--write_as", choices=get_args(Format), default="parquet", help="its format; parquet is ours")
    parser.add_argument("--prompt", default="prompt", help="of lm_eval: a document's key with the user's text")
    given = parser.parse_args(args)
    try:
        count = exchange(**vars(given))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{count:,} responses in {given.write}")


if __name__ == "__main__":
    main()
