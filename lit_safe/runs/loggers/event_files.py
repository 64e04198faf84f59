"""Names TensorBoard's event files so that TensorBoard reads them in the right order."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

PREFIX = "events.out.tfevents."


def open_after(folder: Path, files: Sequence[Path]) -> SummaryWriter:
    """Open a new event file in ``folder`` whose name sorts after those of ``files``.

    A name starts with the time. If the clock was set back, the new file would sort before earlier files, and curves
    would be read in the wrong order. The name ends with the number of earlier files, because two processes with the
    same process id (in two containers, for example) may start in the same second.
    """
    writer = SummaryWriter(str(folder), filename_suffix=f".{len(files)}")
    events = writer.file_writer.event_writer  # type: ignore[attr-defined]
    new, last = Path(events._file_name), max((path.name for path in files), default="")
    if new.name > last:
        return writer
    seconds, _, rest = new.name.removeprefix(PREFIX).partition(".")
    last_seconds = last.removeprefix(PREFIX).partition(".")[0]
    later = max(int(seconds), int(last_seconds) if last_seconds.isdigit() else 0) + 1
    renamed = new.with_name(f"{PREFIX}{later:010d}.{rest}")
    writer.flush()
    new.rename(renamed)  # TensorBoard opens the file by name at each write
    events._file_name = str(renamed)
    events._general_file_writer.filename = str(renamed).encode()
    return writer
