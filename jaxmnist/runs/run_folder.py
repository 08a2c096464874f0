"""The files of a run: its folder, config.json, metrics.jsonl and summary.json."""

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmnist.config import (
    ConfigError,
    SeedsConfig,
    TrainConfig,
    check_format,
    parse_config,
)
from jaxmnist.runs.summary import Row

CONFIG, METRICS, SUMMARY, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "checkpoints",
)
# What other commands make of a finished run.
DERIVED_FOLDERS = (EVALUATION, EXPORT, PROFILE, TENSORBOARD) = (
    "evaluation",
    "export",
    "profile",
    "tensorboard",
)
CURVES = "curves.png"
# What `write` leaves if it is killed.
_SCRATCH = tuple(f".{name}.new" for name in (CONFIG, METRICS, SUMMARY))
# Files that an operating system, a file system or a notebook puts into any folder.
_SYSTEM_FILES = re.compile(
    r"\.DS_Store|\._.*|\.localized|Thumbs\.db|ehthumbs\.db|desktop\.ini|\.directory"
    r"|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+|\.Trash.*|\.Spotlight-V100|\.fseventsd|lost\+found"
    r"|@eaDir|\.ipynb_checkpoints"
)
# A config has less than a thousand; nobody's file makes us read more than this.
MAX_CONFIG_BYTES = 1 << 20
# A thousand seeds of a thousand epochs have fewer.
MAX_ROWS_BYTES = 1 << 29

# Of a row.
_FIGURES_OF_ROW = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


@contextlib.contextmanager
def new_folder(
    config: TrainConfig | SeedsConfig, out: str | os.PathLike | None, overwrite: bool
) -> Iterator[tuple[Path, Path]]:
    """Makes a run folder and holds it; no two processes can make the same default one.

    Args:
        config: names the default folder.
        out: the folder wished for; None: the default.
        overwrite: whether a run that is there is removed.

    Yields:
        The folder wished for, and the one made.

    Raises:
        ConfigError: `out` holds something already, or another process holds it.
        OSError: it cannot be made.
    """
    if out is None:
        wished = Path("runs") / default_name(config)
        path = _next_free(wished)
    else:
        wished = path = Path(out)
        check_free(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        check_free(path, overwrite)
        clear(path)
        yield wished, path


def clear(path: Path) -> None:
    """Removes a run; whenever this is interrupted, what is left is a run or nothing."""
    for folder in seed_folders(path):
        clear(folder)
        shutil.rmtree(folder)  # with what the system put there
    remove_derived(path)
    for name in (TENSORBOARD, PROFILE, CHECKPOINTS):
        if (path / name).exists():
            shutil.rmtree(path / name)
    for name in (METRICS, SUMMARY, *_SCRATCH, CONFIG):  # the config last
        (path / name).unlink(missing_ok=True)


def remove_derived(path: Path) -> None:
    """Removes what was made of the network that a run had come to.

    Raises:
        OSError: it cannot be removed.
    """
    for name in (EVALUATION, EXPORT):
        if (path / name).exists():
            shutil.rmtree(path / name)
    (path / CURVES).unlink(missing_ok=True)


def begin_seeds(path: Path, config: SeedsConfig, kept: dict[str, Any] | None = None) -> None:
    """Writes config.json of the runs of several seeds, and removes a summary that is not kept.

    Raises:
        OSError: the disk does not take it.
    """
    write(path / CONFIG, config.to_json())
    if kept is None:
        (path / SUMMARY).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a folder for this process alone; the lock ends with the process, however that ends.

    On a network file system (NFS) other hosts do not see the lock.

    Raises:
        ConfigError: another process holds it.
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


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[list[str]]:
    """Hold the folder of a run that goes on, or begins if there is none.

    Args:
        path: the folder; made if it is missing.

    Yields:
        A remark, if the folder has no run yet.

    Raises:
        ConfigError: another process holds the folder.
        OSError: the folder cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        yield [f"there is no run in {path} yet: this begins one"] if not _entries(path) else []


def check_own(path: Path) -> None:
    """Accepts a folder that is there and in which no link leads elsewhere.

    Raises:
        ConfigError: it is not there, or something in it is a link.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; expected the folder of a run")
    # Unlike rglob, this does not mind what vanishes meanwhile.
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if (entry := Path(folder, name)).is_symlink():
                raise ConfigError(f"{entry} is a link; the files of a run are in its folder")


def has_config(path: Path) -> bool:
    """Return whether a folder has a config.json that a power cut has not left blank."""
    file = path / CONFIG
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return bool(opened.read(MAX_CONFIG_BYTES).strip(b"\0"))


def read_config(path: Path) -> TrainConfig | SeedsConfig:
    """Reads config.json of the folder of a run, or of the runs of several seeds.

    Raises:
        ConfigError: it is missing or damaged.
        OSError: it cannot be read.
    """
    file = path / CONFIG
    if not file.is_file():
        raise ConfigError(f"{path} has no {CONFIG}; expected the folder of a run")
    _check_small(file, "config")
    try:
        return parse_config(file.read_text())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


def read_config_of_run(path: Path) -> TrainConfig:
    """Reads config.json of the folder of one seed's run.

    Raises:
        ConfigError: as `read_config`, or it is of the runs of several seeds.
        OSError: it cannot be read.
    """
    config = read_config(path)
    if isinstance(config, SeedsConfig):
        seed = config.seeds[0]
        raise ConfigError(
            f"{path} has the runs of {len(config.seeds)} seeds; expected one of them, such as "
            f"{seed_folder(path, seed)}"
        )
    return config


def read_config_of_seeds(path: Path) -> SeedsConfig:
    """Reads config.json of the folder of the runs of several seeds.

    Raises:
        ConfigError: as `read_config`, or it is of one run alone.
        OSError: it cannot be read.
    """
    config = read_config(path)
    if isinstance(config, TrainConfig):
        raise ConfigError(f"{path} has one run; expected the runs of --seeds")
    return config


def read_summary(path: Path) -> dict[str, Any]:
    """Reads summary.json of the folder of the runs of several seeds.

    Raises:
        ConfigError: they have not come to an end, or it is damaged.
        OSError: it cannot be read.
    """
    file = path / SUMMARY
    if not file.is_file():
        raise ConfigError(f"the runs in {path} are not finished; --resume goes on with them")
    _check_small(file, "summary")
    try:
        summary = json.loads(file.read_text())
        check_format(str(file), summary["format"])
        _ = {int(seed): str(reason) for seed, reason in summary["failures"].items()}
        return summary
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged: {error}; --resume writes it anew") from error


def _check_small(file: Path, what: str, most: int = MAX_CONFIG_BYTES) -> None:
    """Bounds what is read whole."""
    size = file.stat().st_size
    if size > most:
        raise ConfigError(f"{file} has {size} bytes; expected a {what}")


def seed_folder(path: Path, seed: int) -> Path:
    """The run of one of several seeds."""
    return path / f"seed{seed}"


def seed_folders(path: Path) -> list[Path]:
    """The runs of several seeds in a folder, as far as they have begun."""
    names = re.compile(r"seed(0|[1-9][0-9]*)")
    return sorted(entry for entry in path.iterdir() if names.fullmatch(entry.name))


def check_free(path: Path, overwrite: bool) -> None:
    """Accepts a folder for a run: one that is empty or not there, or a run to be overwritten.

    Raises:
        ConfigError: it holds something that is not to be removed.
    """
    if not path.is_dir() or not _entries(path):
        return
    if not overwrite:
        raise ConfigError(
            f"{path} is not empty; pass another --out, or, if it holds a run, --resume to go on "
            "with it or --overwrite to replace it"
        )
    check_is_run(path)
    read_config(path)


def check_is_run(path: Path) -> None:
    """Accepts a folder that holds a run, or those of several seeds, or nothing at all.

    Raises:
        ConfigError: it holds something else, or a link, which may lead to another run.
    """
    found = _entries(path)
    for name in sorted(found):
        if (path / name).is_symlink():
            raise ConfigError(
                f"{path / name} is a link, and the files of a run are in its folder; remove the "
                "link, or pass another --out"
            )
    seeds = [folder for folder in seed_folders(path) if folder.is_dir()]
    for folder in seeds:
        check_is_run(folder)
    ours = {CONFIG, METRICS, SUMMARY, CHECKPOINTS, CURVES, *DERIVED_FOLDERS}
    foreign = found - ours - {folder.name for folder in seeds}
    if foreign or (found and CONFIG not in found):
        raise ConfigError(
            f"{path} holds {', '.join(sorted(foreign or found))}, which is not of a run; "
            "pass the --out of a run, or one that is not there yet"
        )


def _entries(path: Path) -> set[str]:
    """Return the names in a folder that are not a system's or left over from a killed process."""
    names = {entry.name for entry in path.iterdir()} - {*_SCRATCH}
    return {name for name in names if not _SYSTEM_FILES.fullmatch(name)}


def default_name(config: TrainConfig | SeedsConfig) -> str:
    """The name of a run's folder: what is not the default is part of it."""
    number = []
    if isinstance(config, SeedsConfig):
        config, number = config.config, [f"{len(config.seeds)}seeds"]
    parts = [config.variant]
    if config.recipe != "notebook":
        parts.append(config.recipe.replace("/", "-"))
    if config.dataset != "mnist":
        parts.append(config.dataset)
    if config.holdout is not None:
        parts.append(f"holdout{config.holdout}-fold{config.fold}")
    parts += number
    return "-".join([*parts, f"seed{config.seed}"])


def _next_free(wished: Path) -> Path:
    """Makes the first of `wished`, `wished`-2, `wished`-3, ... that is not there yet."""
    wished.parent.mkdir(exist_ok=True)
    others = (wished.with_name(f"{wished.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([wished], others) if _made(path))


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def write(path: Path, content: str) -> None:
    """Writes a file so that under its name there is the whole of it or nothing.

    A file that has this content already is left untouched.

    Raises:
        OSError: the disk does not take it.
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
    """Writes metrics.jsonl anew."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Reads a metrics.jsonl, of a run in training, too.

    Raises:
        ConfigError: it is not there, or it is no such file.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; expected the folder of a run")
    _check_small(path, "metrics", MAX_ROWS_BYTES)
    try:
        # A last line without its end is still being written.
        rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        if all({"epoch", "seed", *_FIGURES_OF_ROW} <= row.keys() for row in rows):
            return rows
    except (ValueError, AttributeError, RecursionError):
        pass
    raise ConfigError(f"{path} is damaged; --resume writes it anew")


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json."""
    write(path, json.dumps(summary, indent=2) + "\n")


def append(path: Path, line: str) -> None:
    """Add a line to an existing file; after an error the file is as it was.

    A missing file is an error: its folder was removed, although Orbax may have made it again
    for a checkpoint.

    Raises:
        OSError: the file does not exist or the disk is full; the error names the file.
    """
    size = None
    try:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(max(size - 1, 0))
            # A process that was killed may have left a line without its end.
            newline = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(newline + line.encode() + b"\n")
    except OSError as error:
        if size is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
        raise OSError(error.errno, error.strerror, str(path)) from error
