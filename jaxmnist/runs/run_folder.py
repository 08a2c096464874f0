"""The folder of a run: name, lock, and the files config.json, metrics.jsonl and summary.json."""

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmnist.config import (
    READABLE_FORMATS,
    ConfigError,
    TrainConfig,
    check_format,
    check_seeds,
)
from jaxmnist.runs.summary import ROW_METRICS, Row

CONFIG, METRICS, SUMMARY, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "checkpoints",
)
# Output folders of other commands and options.
DERIVED_FOLDERS = (EVALUATION, EXPORT, PROFILE, TENSORBOARD) = (
    "evaluation",
    "export",
    "profile",
    "tensorboard",
)
CURVES = "curves.png"
# Files that remain if a process is killed during `write`.
_SCRATCH = tuple(f".{name}.new" for name in (CONFIG, METRICS, SUMMARY))
# Files that operating systems, file systems and notebooks create in any folder.
_SYSTEM_FILES = re.compile(
    r"\.DS_Store|\._.*|\.localized|Thumbs\.db|ehthumbs\.db|desktop\.ini|\.directory"
    r"|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+|\.Trash.*|\.Spotlight-V100|\.fseventsd|lost\+found"
    r"|@eaDir|\.ipynb_checkpoints"
)
_SEED_FOLDER = re.compile(r"seed(0|[1-9][0-9]*)")
# Size limits for files that are read at once. A config with a thousand seeds has 11 kB.
MAX_CONFIG_BYTES = 1 << 20
# Sufficient for a thousand seeds of a thousand epochs.
MAX_ROWS_BYTES = 1 << 29


class RunConfig(NamedTuple):
    """The content of config.json."""

    config: TrainConfig  # config of the first seed
    seeds: tuple[int, ...]
    format: int


@contextlib.contextmanager
def new_folder(
    config: TrainConfig, seeds: Sequence[int], out: str | os.PathLike | None, overwrite: bool
) -> Iterator[tuple[Path, Path]]:
    """Create and lock the folder of a run; two processes never create the same default folder.

    Args:
        config: the config of the run, for the default folder name.
        seeds: the seeds of the run, for the default folder name.
        out: the requested folder; None for the default.
        overwrite: whether to remove a run in `out`.

    Yields:
        The requested folder and the created one.

    Raises:
        ConfigError: `out` is not empty, or another process trains into it.
        OSError: the folder cannot be created.
    """
    if out is None:
        requested = Path("runs") / default_name(config, seeds)
        path = _next_free(requested)
    else:
        requested = path = Path(out)
        check_free(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        check_free(path, overwrite)
        clear(path)
        write_config(path, config, seeds)
        write_rows(path, [])
        yield requested, path


def clear(path: Path) -> None:
    """Remove a run; after an interruption, the folder is still recognised as a run."""
    remove_derived(path)
    format_1 = [folder.name for folder in path.iterdir() if _SEED_FOLDER.fullmatch(folder.name)]
    for name in (*format_1, TENSORBOARD, PROFILE, CHECKPOINTS):
        if (path / name).exists():
            shutil.rmtree(path / name)
    for name in (METRICS, *_SCRATCH, CONFIG):  # the config last
        (path / name).unlink(missing_ok=True)


def remove_derived(path: Path) -> None:
    """Remove the summary and the output of other commands, which training makes out of date.

    Raises:
        OSError: a file cannot be removed.
    """
    for name in (EVALUATION, EXPORT):
        if (path / name).exists():
            shutil.rmtree(path / name)
    for name in (CURVES, SUMMARY):
        (path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process.

    On a network file system (NFS), other hosts do not see the lock.

    Raises:
        ConfigError: another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training into {path}; wait for it, or pass another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)


def is_empty(path: Path) -> bool:
    """Return whether a folder is empty, except for system files."""
    return not _entries(path)


def check_links(path: Path) -> None:
    """Check that a folder exists and contains no symbolic links.

    Raises:
        ConfigError: the folder does not exist or contains a link.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; expected the folder of a run")
    # Unlike rglob, os.walk does not fail if an entry disappears meanwhile.
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (entry := Path(folder, name)).is_symlink():
                raise ConfigError(f"{entry} is a link; a run's folder must not contain links")


def checkpoint_folder(path: Path, seed: int) -> Path:
    """Return the folder of a seed's checkpoints."""
    return path / CHECKPOINTS / f"seed{seed}"


def find_checkpoints(path: Path, seed: int) -> Path:
    """Return the folder of a seed's checkpoints in a run of any readable format."""
    folder = checkpoint_folder(path, seed)
    format_1 = (path / f"seed{seed}" / CHECKPOINTS, path / CHECKPOINTS)
    return next((each for each in (folder, format_1[0]) if each.is_dir()), format_1[1])


def seeds_with_checkpoints(path: Path) -> list[int]:
    """Return the seeds with a checkpoint folder, in order."""
    folders = (path / CHECKPOINTS).glob("seed*")
    names = [folder.name for folder in folders if _SEED_FOLDER.fullmatch(folder.name)]
    return sorted(int(name.removeprefix("seed")) for name in names)


def has_config(path: Path) -> bool:
    """Return whether a folder has a config.json that is not blank, as after a power cut."""
    file = path / CONFIG
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return bool(opened.read(MAX_CONFIG_BYTES).strip(b"\0"))


def read_config(path: Path) -> RunConfig:
    """Read config.json of a run.

    Raises:
        ConfigError: the file is missing or damaged.
        OSError: the file cannot be read.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ConfigError(f"{path} has no {CONFIG}; expected the folder of a run")
    content = _read(file, "config")
    try:
        return parse_config(content.decode())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


def parse_config(text: str) -> RunConfig:
    """Parse the text of a config.json; in format 1, a run of one seed has no list of seeds.

    Raises:
        ConfigError: the text is not a valid config.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}") from error
    seeds = values.pop("seeds", None) if isinstance(values, dict) else None
    config = TrainConfig.from_dict(values)
    if values["format"] == 1 and seeds is None:
        seeds = [config.seed]
    if not isinstance(seeds, list):
        raise ConfigError(f"config has the seeds {seeds!r}; expected a list")
    return RunConfig(config, check_seeds(seeds), values["format"])


def format_config(config: TrainConfig, seeds: Sequence[int]) -> str:
    """Return the text of config.json."""
    return json.dumps({**config.to_dict(), "seeds": list(seeds)}, indent=2) + "\n"


def write_config(path: Path, config: TrainConfig, seeds: Sequence[int]) -> None:
    """Write config.json of a run.

    Raises:
        OSError: the file cannot be written.
    """
    write(path / CONFIG, format_config(config, seeds))


def read_summary(path: Path) -> dict[str, Any]:
    """Read summary.json of a run.

    Raises:
        ConfigError: the run is not finished, or the file is damaged.
        OSError: the file cannot be read.
    """
    file = path / SUMMARY
    if not file.is_file():
        raise ConfigError(f"the run in {path} is not finished; use --resume to continue it")
    with _damage_named(file):
        summary = json.loads(_read(file, "summary"))
        check_format(str(file), summary["format"], *READABLE_FORMATS)
        _ = {int(seed): str(reason) for seed, reason in summary["failures"].items()}
        return summary


def read_rows(path: Path) -> list[Row]:
    """Read metrics.jsonl of a run, which may still be training.

    Raises:
        ConfigError: the file is missing or damaged.
        OSError: the file cannot be read.
    """
    file = path / METRICS
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; expected the folder of a run")
    with _damage_named(file):
        # A last line without a line break is still being written.
        lines = _read(file, "metrics", MAX_ROWS_BYTES).split(b"\n")[:-1]
        rows = [json.loads(line) for line in lines]
        _ = [[row[name] for name in ("epoch", "seed", *ROW_METRICS)] for row in rows]
        return rows


def _read(file: Path, what: str, most: int = MAX_CONFIG_BYTES) -> bytes:
    """Read a file, unless it is implausibly large."""
    size = file.stat().st_size
    if size > most:
        raise ConfigError(f"{file} has {size} bytes; expected a {what}")
    return file.read_bytes()


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Raise a ConfigError that names the file if its content is invalid."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged; --resume writes it anew ({error})") from error


def check_free(path: Path, overwrite: bool) -> None:
    """Check that a folder can be used for a new run: missing, empty, or with a run to overwrite.

    Raises:
        ConfigError: the folder contains something that must not be removed.
    """
    if not path.is_dir() or is_empty(path):
        return
    if not overwrite:
        raise ConfigError(
            f"{path} is not empty; pass another --out, or, if it holds a run, --resume to "
            "continue it or --overwrite to replace it"
        )
    check_is_run(path)
    read_config(path)


def check_is_run(path: Path) -> None:
    """Check that a folder is empty or contains a run.

    Raises:
        ConfigError: the folder contains something else, or a link, which may lead to another run.
    """
    found = _entries(path)
    for name in sorted(found):
        if (path / name).is_symlink():
            raise ConfigError(
                f"{path / name} is a link, and a run's folder must not contain links; remove "
                "the link, or pass another --out"
            )
    ours = {CONFIG, METRICS, SUMMARY, CHECKPOINTS, CURVES, *DERIVED_FOLDERS}
    # Seed folders of format 1.
    ours |= {name for name in found if _SEED_FOLDER.fullmatch(name) and (path / name).is_dir()}
    if found - ours or (found and CONFIG not in found):
        raise ConfigError(
            f"{path} holds {', '.join(sorted((found - ours) or found))}, which does "
            "not belong to a run; pass the folder of a run as --out, or a new one"
        )


def _entries(path: Path) -> set[str]:
    """Return the names in a folder, without system files and files left by killed processes."""
    names = {entry.name for entry in path.iterdir()} - {*_SCRATCH}
    return {name for name in names if not _SYSTEM_FILES.fullmatch(name)}


def default_name(config: TrainConfig, seeds: Sequence[int]) -> str:
    """Return the default name of a run's folder, with the values that are not defaults."""
    parts = [config.variant]
    if config.recipe != TrainConfig.recipe:
        parts.append(config.recipe.replace("/", "-"))
    if config.dataset != TrainConfig.dataset:
        parts.append(config.dataset)
    if config.holdout is not None:
        parts.append(f"holdout{config.holdout}-fold{config.fold}")
    if len(seeds) > 1:
        parts.append(f"{len(seeds)}seeds")
    return "-".join([*parts, f"seed{seeds[0]}"])


def _next_free(requested: Path) -> Path:
    """Create the first of `requested`, `requested`-2, `requested`-3, ... that does not exist."""
    requested.parent.mkdir(exist_ok=True)
    others = (requested.with_name(f"{requested.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([requested], others) if _made(path))


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def write(path: Path, content: str) -> None:
    """Write a file atomically; do not touch a file that already has this content.

    Raises:
        OSError: the file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.new")
    try:
        if not _has(path, content.encode()):
            scratch.write_bytes(content.encode())
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _has(path: Path, content: bytes) -> bool:
    try:
        same_size = path.is_file() and path.stat().st_size == len(content)
        return same_size and path.read_bytes() == content
    except OSError:
        return False


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.jsonl of a run."""
    write(path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: Row) -> None:
    """Append a row to metrics.jsonl of a run; after an error, the file is unchanged.

    A missing file is an error: the run's folder was removed, even if a checkpoint has since created
    it again.

    Raises:
        OSError: the file does not exist or the disk is full; the error names the file.
    """
    append(path / METRICS, json.dumps(row))


def append(file: Path, line: str) -> None:
    """Append a line to an existing file; after an error, the file is unchanged.

    Raises:
        OSError: the file does not exist or the disk is full; the error names the file.
    """
    size = None
    try:
        size = file.stat().st_size
        with file.open("a+b") as opened:
            opened.seek(max(size - 1, 0))
            # A killed process may have left a line without a line break.
            newline = b"" if opened.read(1) in (b"", b"\n") else b"\n"
            opened.write(newline + line.encode() + b"\n")
    except OSError as error:
        if size is not None:
            with contextlib.suppress(OSError):
                os.truncate(file, size)
        raise OSError(error.errno, error.strerror, str(file)) from error


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write summary.json of a finished run."""
    write(path / SUMMARY, json.dumps(summary, indent=2) + "\n")
