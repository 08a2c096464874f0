import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import jax
import pytest
import requests

from jaxmnist import RunOptions, TrainConfig, data
from jaxmnist.config import parse_seeds
from jaxmnist.data import sources
from jaxmnist.parallel.limits import cores
from jaxmnist.runs import loop, run_folder
from tests.conftest import SCRIPTS, small_files

pytestmark = pytest.mark.usefixtures("shared_programs")

TINY = (
    *("--variant", "tiny", "--dataset", "kmnist", "--epochs", "1", "--batch-size", "100"),
    *("--schedule", "constant"),
)


@pytest.fixture(scope="module")
def script():
    """scripts/train.py as a module."""
    return importlib.import_module("train")


@pytest.fixture(scope="module")
def command():
    return importlib.import_module("support.command")


def resolved(script, *words):
    """The config, the seeds and the options that a command line asks for."""
    return script.resolve(script.make_parser().parse_words(words))


@pytest.fixture
def run(script, command, capsys, tmp_path, monkeypatch):
    """Runs the command line in this process: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "keep_compiled_programs", lambda folder: None)

    def run(*words):
        try:
            status = script.main([str(word) for word in words])
        except SystemExit as stop:  # the command-line library's own way out
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_output_of_a_training(run, small_idx_dir):
    status, out, err = run(*TINY, "--idx-dir", small_idx_dir)
    assert (status, err) == (0, "")
    # On a slow machine the epoch takes long enough for lines of progress.
    lines = [line for line in out.splitlines() if ", step " not in line]
    assert lines[0] == "training 6 steps over 600 images into runs/tiny-kmnist-seed0"
    assert re.match(r"epoch 1/1: train loss \d\.\d{4}, .* %; test loss \d\.\d{4}, .* %; ", lines[1])
    assert re.fullmatch(
        r"tiny, seed 0: \d+\.\d\d % of 430 test images \(best epoch \d+\.\d\d %\), "
        r"1,484 parameters, \d+ s, in runs/tiny-kmnist-seed0",
        lines[-1],
    )
    summary = json.loads(Path("runs/tiny-kmnist-seed0/summary.json").read_text())
    assert f"{summary['final_test_accuracy'][0]:.2f} %" in lines[-1]


def test_quiet_prints_the_result_only_and_a_second_run_takes_the_next_name(run, small_idx_dir):
    quiet = (*TINY, "--idx-dir", small_idx_dir, "--quiet", "--limit-train", "200")
    for name in ("tiny-kmnist-seed0", "tiny-kmnist-seed0-2"):
        status, out, _ = run(*quiet)
        assert status == 0
        (line,) = out.splitlines()
        assert line.endswith(f"in runs/{name}")
    _, out, _ = run(*quiet[:-3], *quiet[-2:])
    assert "into runs/tiny-kmnist-seed0-3 (runs/tiny-kmnist-seed0 holds a run" in out


def test_a_taken_out_is_refused_unless_overwritten(run, small_idx_dir):
    tiny = (*TINY, "--idx-dir", small_idx_dir, "--out", "here", "--limit-train", "200")
    assert run(*tiny)[0] == 0
    status, _, err = run(*tiny)
    assert (status, err) == (
        2,
        "error: here is not empty; pass another --out, or, if it holds a run, --resume to "
        "continue it or --overwrite to replace it\n",
    )
    assert run(*tiny, "--overwrite")[0] == 0


def test_dry_run_prints_and_trains_nothing(run):
    status, out, err = run("--variant", "gap", "--dry-run", "--seed", "7")
    assert (status, err) == (0, "")
    config = out[: out.index("}") + 1]
    assert TrainConfig.from_dict(json.loads(config)) == TrainConfig("gap", seed=7)
    assert "7,364" in out
    assert "15 epochs of 468 steps of 128 images: 7020 steps over 60,000 training images" in out
    assert list(Path().iterdir()) == []


def test_dry_run_counts_images(run, small_idx_dir):
    _, out, _ = run("--dry-run", "--holdout", "5000")
    assert "15 epochs of 429 steps of 128 images: 6435 steps over 55,000 training images" in out
    _, out, _ = run(*TINY, "--idx-dir", small_idx_dir, "--dry-run", "--limit-train", "450")
    assert "1 epochs of 4 steps of 100 images: 4 steps over 450 training images" in out


@pytest.mark.parametrize("variant", ["gap", "less_params"])
def test_defaults_are_those_of_the_variant(script, variant):
    assert resolved(script, "--variant", variant) == (TrainConfig(variant), (0,), RunOptions())


def test_every_option_reaches_the_config(script):
    words = (
        "--variant gap --dataset kmnist --epochs 3 --batch-size 64 --learning-rate 0.5 --seed 9 "
        "--no-augment --dropout 0.1 --limit-train 1000 --out o --data-dir d --idx-dir i "
        "--overwrite --resume --checkpoint-every 3 --keep 5 --quiet --debug --seeds 4 "
        "--seed-mapping vmap --schedule constant --momentum 0.5 --nesterov --weight_decay 0.1 "
        "--ema-decay 0.9 --no-compilation-cache"
    )
    config, seeds, options = resolved(script, *words.split())
    assert config == TrainConfig(
        "gap",
        "kmnist",
        epochs=3,
        batch_size=64,
        learning_rate=0.5,
        seed=9,
        augment=False,
        dropout=0.1,
        limit_train=1000,
        schedule="constant",
        momentum=0.5,
        nesterov=True,
        weight_decay=0.1,
        ema_decay=0.9,
    )
    assert seeds == (9, 10, 11, 12)
    assert options == RunOptions(
        data_dir=Path("d"),
        idx_dir=Path("i"),
        overwrite=True,
        resume=True,
        checkpoint_every="3",
        keep=5,
        seed_mapping="vmap",
    )
    arguments = script.make_parser().parse_words(words.split())
    assert (arguments.out, arguments.quiet, arguments.debug) == (Path("o"), True, True)
    assert not arguments.compilation_cache


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--variant gpa", r"^error: variant is 'gpa'; .*Did you mean gap\?\n$"),
        ("--dataset minst", r"^error: dataset is 'minst'; .*Did you mean mnist\?\n$"),
        ("--epochs 0", r"^error: epochs is 0; expected a whole number of at least 1\n$"),
        ("--batch-size -3", r"^error: batch_size is -3; expected a whole number"),
        ("--learning-rate 0", r"^error: learning_rate is 0\.0; expected a finite number above 0"),
        ("--seed -1", r"^error: seed is -1; expected a whole number from 0"),
        ("--variant skeleton --dropout 0.1", r"^error: dropout is 0\.1, but the variant skeleton"),
        ("--dry-run --batch-size 60001", r"^error: batch_size is 60001, but there are only 60000"),
        ("--dry-run --epochs 1 --batch-size 30000", r"^error: the one-cycle schedule needs at"),
        (
            "--checkpoint-every often",
            r"^error: checkpoint_every is 'often'; expected epochs, such as 2",
        ),
        ("--resume", r"^error: resume needs the folder of the run; pass --out\n$"),
        ("--resume --out a --overwrite", r"^error: resume and overwrite exclude each other"),
        ("--keep 0", r"^error: keep is 0; expected a whole number of at least 1\n$"),
        ("--holdout 70000 --dry-run", r"^error: holdout is 70000 and fold 0, but there are 60000"),
        ("--keep 0 --dry-run", r"^error: keep is 0; expected a whole number of at least 1\n$"),
        ("--checkpoint-every foo --dry-run", r"^error: checkpoint_every is 'foo'; expected epochs"),
        ("--limit-train 60001 --dry-run", r"^error: limit_train is 60001, but there are 60000"),
        (
            "--limit-train 55001 --holdout 5000 --dry-run",
            r"^error: limit_train is 55001, but .*55000",
        ),
        ("--devices 99 --dry-run", r"^error: devices is 99; expected a whole number from 1 to"),
        ("--resume --dry-run", r"^error: resume needs the folder of the run; pass --out"),
        ("--seeds 2 --profile --dry-run", r"^error: profile is for a run of one seed"),
        ("--variant less_params --epochs 50001 --dry-run", r"^error: epochs is 50001; expected at"),
        ("--out=~nobody-like-this/x", r"^error: argument --out: ~nobody-like-this/x begins with"),
        ("--out", r"^error: argument --out: expected one argument; --help lists all options\n$"),
        ("--num-processes many", r"^error: argument --num-processes: invalid int value: 'many'"),
        (
            "--seeds many",
            r"^error: seeds is 'many'; expected a count, such as 8, or a list, such as 3,7,11",
        ),
        ("--seeds 3,7 --seed 9", r"^error: seeds is '3,7', which names each one: leave --seed out"),
        ("--seeds 0", r"^error: seeds is empty; expected at least one\n$"),
        ("--seeds 3,7,3", r"^error: seeds has 3 more than once; each seed is one run\n$"),
        ("--seeds 1001", r"^error: there are more than 1000 seeds; expected at most that many\n$"),
        ("--seeds 2 --seed 4294967295", r"^error: seed is 4294967296; expected a whole number"),
        (
            "--seeds 2 --seed-mapping lop",
            r"^error: seed_mapping is 'lop'; .*Did you mean loop\?\n$",
        ),
        (
            "--dry-run --seeds 2 --seed-mapping lop",
            r"^error: seed_mapping is 'lop'; expected one of",
        ),
        ("--epochs many", r"^error: argument --epochs: invalid int value: 'many'; --help lists"),
        ("--epoch 3", r"^error: there is no option --epoch; did you mean --epochs\?\n$"),
        ("--zzz 3", r"^error: there is no option --zzz; --help lists all options\n$"),
        ("train", r"^error: there is no option train; --help lists all options\n$"),
    ],
)
def test_a_wrong_command_line_is_named_and_exits_2(run, words, message):
    status, _, err = run(*words.split())
    assert status == 2
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_an_error_is_one_line_and_exits_1(run, tmp_path, small_idx_dir):
    status, _, err = run(*TINY, "--idx-dir", "nowhere")
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.startswith("error: nowhere has no train-images-idx3-ubyte")

    (tmp_path / "file").write_text("")
    status, _, err = run(*TINY, "--idx-dir", small_idx_dir, "--out", "file/below")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "file/below" in err


def test_missing_images_are_one_line_with_the_remedy(run, monkeypatch):
    def no_connection(*arguments, **options):
        raise requests.ConnectionError("a long story")

    def no_pip(*arguments):
        raise data.DataError("pip: ERROR: none found")

    monkeypatch.setattr(requests, "get", no_connection)
    monkeypatch.setattr(sources, "_pip_download", no_pip)
    status, _, err = run("--variant", "less_params", "--quiet")
    assert (status, len(err.splitlines())) == (1, 1)
    assert re.search(
        r"mnist is not on this machine.*no connection.*none found.*pass --idx-dir", err
    )
    assert list(Path().glob("runs/*")) == []


def test_data_dir_is_where_the_images_are_kept(run, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "fetch", lambda dataset, progress: small_files())
    status, out, _ = run(*TINY, "--data-dir", tmp_path / "kept", "--limit-train", "200")
    assert status == 0
    assert "preparing train-images-idx3-ubyte: 100%" in out
    assert (tmp_path / "kept" / "jaxmnist" / "arrays" / "kmnist").is_dir()


def test_debug_adds_the_traceback(run):
    _, _, err = run(*TINY, "--idx-dir", "nowhere", "--debug")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: nowhere has no")


def test_an_unexpected_error_is_one_line(run, script, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("never\nmind")

    monkeypatch.setattr(script, "train", fail)
    assert run(*TINY) == (1, "", "error: ZeroDivisionError: never mind (--debug shows where)\n")


def test_compiled_programs_are_kept(command, monkeypatch, tmp_path):
    set_options = {}
    monkeypatch.setattr(jax.config, "update", set_options.__setitem__)
    command.keep_compiled_programs(tmp_path)
    assert set_options == {
        "jax_compilation_cache_dir": f"{tmp_path}/{len(cores())}-cores",
        "jax_compilation_cache_max_size": 512 << 20,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }


@pytest.mark.parametrize("trouble", ["full", "a file in its place"])
def test_an_unusable_compilation_cache_is_a_note(
    script, command, monkeypatch, tmp_path, capsys, small_idx_dir, trouble
):
    set_options = {}
    monkeypatch.setattr(jax.config, "update", set_options.__setitem__)
    monkeypatch.setattr(command.platformdirs, "user_cache_path", lambda name: tmp_path / "cache")
    if trouble == "full":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(command.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    else:
        (tmp_path / "cache").write_text("")
    monkeypatch.setattr(script, "train", lambda *_, **__: sys.exit(7))
    with pytest.raises(SystemExit):
        script.main([*TINY, "--idx-dir", str(small_idx_dir)])
    err = capsys.readouterr().err
    assert re.fullmatch(r"note: compiled programs are not kept: .*compiled'?\n", err)
    assert "jax_compilation_cache_dir" not in set_options


def test_the_compilation_cache_is_the_users(command, monkeypatch, run, tmp_path):
    folders = []
    monkeypatch.setattr(command, "keep_compiled_programs", folders.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run(*TINY, "--idx-dir", "nowhere")
    (folder,) = folders
    assert folder.parts[-2:] == ("jaxmnist", "compiled")
    if sys.platform == "linux":
        assert folder.parent.parent == tmp_path


@pytest.mark.parametrize(("words", "kept"), [((), 1), (("--no-compilation-cache",), 0)])
def test_no_compilation_cache(command, monkeypatch, run, words, kept):
    calls = []
    monkeypatch.setattr(command, "keep_compiled_programs", calls.append)
    run(*TINY, "--idx-dir", "nowhere", *words)
    assert len(calls) == kept


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(run, small_idx_dir, monkeypatch):
    def full(path, rows):
        (path / "metrics.jsonl").unlink(missing_ok=True)
        (path / "metrics.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(run_folder, "write_rows", full)
    status, _, err = run(*TINY, "--idx-dir", small_idx_dir, "--out", "here")
    assert status == 1
    assert "No space left on device" in err
    assert len(err.splitlines()) == 1
    assert not Path("here/summary.json").exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_before_the_training_stops_at_once(run, script, monkeypatch, number, status):
    before = signal.getsignal(number)
    # Where the tests run in the background, SIGINT is ignored, and would stay so.
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)

    def fetch(*arguments, **options):
        os.kill(os.getpid(), number)
        raise AssertionError("went on")

    monkeypatch.setattr(script, "train", fetch)
    assert run(*TINY) == (status, "", "stopped\n")
    assert signal.signal(number, before) == before


def test_the_command_line_that_resumes(script):
    path = Path("runs/gap-seed0")
    assert script.words_to_resume(["--variant", "gap"], path) == [
        *("--variant", "gap", "--resume", "--out", "runs/gap-seed0")
    ]
    words = ["--out=here", "--overwrite", "--quiet"]
    assert script.words_to_resume(words, path) == ["--out=here", "--quiet", "--resume"]


def test_resume_needs_no_options_of_the_config(run, script, small_idx_dir):
    tiny = (*TINY, "--idx-dir", small_idx_dir, "--out", "here")
    assert run(*tiny)[0] == 0
    begun = TrainConfig("tiny", "kmnist", epochs=1, batch_size=100, schedule="constant")
    assert resolved(script, "--resume", "--out", "here")[:2] == (begun, (0,))
    longer, _, _ = resolved(script, "--resume", "--out", "here", "--epochs", "2")
    assert longer == dataclasses.replace(begun, epochs=2)
    status, out, _ = run("--resume", "--out", "here", "--idx-dir", small_idx_dir)
    assert status == 0
    assert out.splitlines()[0] == "the run in here is finished: 6 steps"
    status, _, err = run("--resume", "--out", "here", "--idx-dir", small_idx_dir, "--seed", "5")
    assert status == 2
    assert "another config: seed was 0 and is 5;" in err


def files_of(folder):
    """The content and the time of every text file of a run."""
    return {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in Path(folder).rglob("*.json*")
        if "checkpoints" not in file.parts
    }


@pytest.mark.parametrize("seeds", [(), ("--seeds", "2", "--seed", "3", "--seed-mapping", "loop")])
@pytest.mark.parametrize("there", [None, "", ".DS_Store", ".config.json.new", "config.json"])
def test_one_command_line_begins_and_resumes_a_run(run, small_idx_dir, seeds, there):
    if there is not None:
        Path("below/here").mkdir(parents=True)
        if there:  # an empty config.json is what a power cut may leave
            Path("below/here", there).write_text("")
    tiny = (*TINY, *seeds, "--limit-train", "200", "--idx-dir", small_idx_dir)
    words = (*tiny, "--resume", "--out", "below/here")
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    begins = "note: there is no run in below/here yet; a new one starts"
    assert (begins in out.splitlines()) == (there != "config.json")
    before = files_of("below/here")
    assert len(before) == 3
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith("finished: " + ("2 of 2 seeds" if seeds else "2 steps"))
    assert files_of("below/here") == before


def test_resume_refuses_other_folders(run, small_idx_dir):
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("years of work")
    words = (*TINY, "--idx-dir", small_idx_dir, "--resume", "--out", "thesis")
    for more in ((), ("--dry-run",), ("--seeds", "2"), ("--seeds", "2", "--dry-run")):
        status, _, err = run(*words, *more)
        assert status == 2
        assert "thesis holds chapter1.tex, which does not belong to a run" in err
    Path("file").write_text("")
    status, _, err = run(*TINY, "--idx-dir", small_idx_dir, "--resume", "--out", "file")
    assert (status, err) == (2, "error: file is not a folder; expected the folder of a run\n")


def test_the_home_directory_is_expanded_in_every_path(script, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--out=~/x", "--data-dir=~/d", "--idx-dir=~/i"]
    arguments = script.make_parser().parse_words(words)
    paths = (arguments.out, arguments.data_dir, arguments.idx_dir)
    assert paths == (tmp_path / "x", tmp_path / "d", tmp_path / "i")
    (tmp_path / "x").mkdir()
    begun = TrainConfig("dropout", seed=3)
    run_folder.write_config(tmp_path / "x", begun, [3])
    assert resolved(script, "--resume", "--out=~/x")[:2] == (begun, (3,))


def test_dry_run_checks_the_folder(run):
    Path("here").mkdir()
    run_folder.write_config(Path("here"), TrainConfig("less_params"), [0])
    status, _, err = run("--dry-run", "--out", "here")
    assert (status, err[:22]) == (2, "error: here is not emp")
    status, _, err = run("--dry-run", "--resume", "--out", "here", "--batch-size", "64")
    assert status == 2
    assert "batch_size was 128 and is 64" in err
    assert run("--dry-run", "--overwrite", "--out", "here")[0] == 0
    assert run("--dry-run", "--resume", "--out", "here")[0] == 0
    assert [entry.name for entry in Path("here").iterdir()] == ["config.json"]


SEEDS = (*TINY, "--limit-train", "200", "--seed-mapping", "loop")


@pytest.mark.parametrize("seed", [0, 3])
def test_seeds_are_added_to_a_run_of_one(run, small_idx_dir, seed):
    images = ("--idx-dir", small_idx_dir)
    assert run(*SEEDS, *images, "--seed", seed, "--seeds", "1", "--out", "one")[0] == 0
    status, out, err = run("--resume", "--out", "one", *images)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "the run in one is finished: 2 steps"
    more = ("--seeds", "2", "--seed-mapping", "loop")
    assert run("--resume", "--out", "one", *more, *images)[0] == 0
    summary = json.loads(Path("one/summary.json").read_text())
    assert summary["seeds"] == [seed, seed + 1]


@pytest.mark.parametrize(("seeds", "others"), [("3", "3 to 5"), ("1", "3"), ("3,9", "3, 9")])
def test_resume_with_other_seeds_is_refused(run, script, tmp_path, seeds, others):
    begun = parse_seeds(seeds, 3)
    run_folder.write_config(tmp_path, TrainConfig("gap", seed=3), begun)
    words = ["--resume", "--out", str(tmp_path)]
    assert resolved(script, *words)[1] == begun
    status, _, err = run(*words, "--dry-run", "--seed", "7")
    one = "seed was 3 and is 7"
    assert (status, (one if seeds == "1" else f"started with the seeds {others}, ") in err) == (
        2,
        True,
    )


def test_output_of_several_seeds(run, small_idx_dir):
    status, out, err = run(*SEEDS, "--idx-dir", small_idx_dir, "--seeds", "2", "--seed", "5")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    folder = "runs/tiny-kmnist-2seeds-seed5"
    assert lines[0] == f"training seeds 5, 6 (loop), 2 steps each over 200 images into {folder}"
    assert lines[1].startswith("seed 5, epoch 1/1: train loss ")
    assert lines[2].startswith("1 of 2 seeds: test ")
    summary = json.loads(Path(folder, "summary.json").read_text())
    first, second = summary["final_test_accuracy"]
    mean, sd = (first + second) / 2, abs(first - second) / 2**0.5
    accuracies = f"{mean:.2f} ± {sd:.2f} %"
    assert lines[-1].startswith(f"tiny, 2 of 2 seeds: {accuracies} of 430 test images (")
    assert lines[-1].endswith(f"1,484 parameters, {lines[-1].split()[-4]} s, in {folder}")
    cells = [cell.strip() for cell in lines[-4].strip("│").split("│")]
    assert cells[0] == "5"
    assert cells[3] == f"{first:.2f}"


def test_resume_needs_no_seeds(run, script, small_idx_dir):
    words = (*SEEDS, "--idx-dir", small_idx_dir, "--out", "here", "--quiet")
    status, out, _ = run(*words, "--seeds", "3,1")
    assert (status, len(out.splitlines())) == (0, 1)
    config, seeds, _ = resolved(script, "--resume", "--out", "here")
    assert (seeds, config.seed, config.limit_train) == ((3, 1), 3, 200)
    status, out, _ = run("--resume", "--out", "here", "--idx-dir", small_idx_dir)
    assert status == 0
    assert out.splitlines()[0] == "the runs in here are finished: 2 of 2 seeds"


def test_a_seed_that_fails_is_an_error_line_and_exits_1(run, small_idx_dir, monkeypatch):
    def check(which, loss, step, seed, setup):
        if seed == 1:
            raise loop.TrainingError("the loss became nan")

    monkeypatch.setattr(loop, "check_finite", check)
    words = (*SEEDS, "--idx-dir", small_idx_dir, "--quiet")
    status, out, err = run(*words, "--seeds", "3")
    assert (status, err) == (1, "error: seed 1: the loss became nan\n")
    assert out.startswith("tiny, 2 of 3 seeds: ")
    assert run(*words, "--seed", "1") == (1, "", "error: the loss became nan\n")


def test_dry_run_prints_the_seed_mapping(run):
    _, out, _ = run("--dry-run", "--seeds", "8", "--seed-mapping", "vmap")
    assert out.splitlines()[-1] == "seeds 0 to 7 (vmap)"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "script", [path.stem for path in sorted(SCRIPTS.glob("*.py")) if path.stem != "one_file"]
)
def test_every_command_has_help(script, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(script).main(["--help"])
    assert "--help" in capsys.readouterr().out
