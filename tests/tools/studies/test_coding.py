"""Movies, cells, recordings in files, and networks fitted to them."""

import dataclasses
import datetime
import os
import sys

import numpy as np
import pytest
import torch

import main_coding
from dataset_utils import DATASETS
from models import Gaussian
from tests.chance import deviations
from tests.conftest import first_are_fast, lines_of
from tools import cli
from tools.analysis import spike_trains
from tools.errors import UserError
from tools.studies.coding import experiments, fitting
from tools.studies.coding.cells import FRAME_S, LIFCells, LNCells, digit_movie, filtered, receptive_fields, stacked
from tools.studies.coding.experiments import Responses, Split, compare
from tools.studies.coding.fitting import fit, simulate, trace_loss
from tools.studies.coding.judging import has_signal, judge
from tools.studies.coding.recordings import Recording, read_recording
from tools.studies.study import Study, rounded

pynwb = pytest.importorskip("pynwb")
h5py = pytest.importorskip("h5py")


def noise_movie(frames, size=8):
    """Gaussian noise that is as smooth as natural scenes: a spectrum of 1 / k^2 in space, and a corner in time."""
    k, f = np.fft.fftfreq(size, 1 / size), np.fft.fftfreq(frames, FRAME_S)[:, None, None]
    power = 1 / np.maximum(k[:, None] ** 2 + k**2, 1.0) / (1 + (0.1 * f) ** 2)
    white = np.fft.fftn(np.random.RandomState(0).standard_normal((frames, size, size)))
    movie = np.fft.ifftn(white * np.sqrt(power)).real
    return ((movie - movie.mean()) / movie.std()).astype(np.float32)


def test_movies_are_standardised_and_repeat_with_their_seed():
    digits = (torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.8).to(torch.uint8) * 255
    movie, again, other = (digit_movie(digits, 120, np.random.RandomState(seed)) for seed in (1, 1, 2))
    assert movie.shape == (120, 16, 16) and movie.dtype == np.float32
    assert movie.mean() == pytest.approx(0, abs=1e-4) and movie.std() == pytest.approx(1, abs=1e-4)
    assert (movie == again).all() and (movie != other).any()
    change = np.square(np.diff(movie, axis=0)).mean((1, 2))  # light on the torus moves on from frame to frame
    assert np.median(change) < 0.5 < change[50]  # a new scene


def test_frames_are_stacked_with_the_present_one_last():
    movie = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    frames = stacked(movie, 3)
    assert frames.shape == (5, 3, 2, 3)
    assert frames[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    fields = receptive_fields(4, (2, 3), np.random.RandomState(0))
    assert np.square(fields).sum((1, 2, 3)) == pytest.approx(1, abs=1e-5)
    whole = stacked(movie, fields.shape[1])[4]
    assert filtered(movie, fields)[4] == pytest.approx((fields * whole.numpy()).sum((1, 2, 3)), rel=1e-4)


def arrays(frames=30, trials=3, cells=2):
    random = np.random.default_rng(0)
    return random.standard_normal((frames, 6, 5)), random.poisson(0.3, (trials, frames, cells)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_recording_in_arrays(tmp_path, save):
    movie, spikes = arrays()
    save(tmp_path / "retina.npz", movie=3 * movie + 7, spikes=spikes, frame_s=0.02)
    found = read_recording(tmp_path / "retina.npz")
    assert (found.spikes == spikes).all() and found.frame_s == 0.02
    assert found.movie == pytest.approx((movie - movie.mean()) / movie.std(), abs=1e-5)


def write_nwb(path, movie, spikes, frame_s=0.02, names=("film",), colours=False, timestamps=None, timed=True):
    """A session as a lab would write it: presentations with pauses, spike times of sorted units in seconds."""
    random = np.random.default_rng(1)
    nwb = pynwb.NWBFile("test", "test", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    data = np.repeat(movie[..., None], 3, -1) if colours else movie
    for name in names:
        timing = dict(rate=1 / frame_s, starting_time=0.0) if timestamps is None else dict(timestamps=timestamps)
        nwb.add_stimulus(pynwb.image.ImageSeries(name=name, data=data, unit="n.a.", **timing))
    nwb.add_trial_column("stimulus", "what was shown")
    starts = 0.7 + np.arange(len(spikes)) * (len(movie) * frame_s + 0.5)
    for start in starts:
        nwb.add_trial(start_time=start, stop_time=start + len(movie) * frame_s, stimulus=names[0])
    nwb.add_trial(start_time=starts[-1] + 100, stop_time=starts[-1] + 100.1, stimulus=names[0])  # broken off
    if not timed:
        nwb.add_unit_column("quality", "of sorting")
    for cell in range(spikes.shape[2]):
        times = [0.1]  # before the first trial
        for start, trial in zip(starts, spikes[:, :, cell]):
            for frame, count in enumerate(trial):
                times.extend(start + frame_s * (frame + random.uniform(0.01, 0.99, count)))
        nwb.add_unit(**({"spike_times": np.sort(times)} if timed else {"quality": 1.0}))
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)


@pytest.mark.parametrize("colours", [False, True])
def test_a_recording_in_nwb(tmp_path, colours):
    movie, spikes = arrays()
    write_nwb(tmp_path / "retina.nwb", movie, spikes, colours=colours)
    found = read_recording(tmp_path / "retina.nwb")
    assert (found.spikes == spikes).all() and found.frame_s == pytest.approx(0.02)
    assert found.movie == pytest.approx((movie - movie.mean()) / movie.std(), abs=1e-5)


def test_the_frames_of_nwb_may_have_timestamps_that_jitter_but_not_pause(tmp_path):
    movie, spikes = arrays()
    times = 5.0 + 0.02 * np.arange(len(movie))
    times[1] -= 0.005
    write_nwb(tmp_path / "retina.nwb", movie, spikes, timestamps=times)
    found = read_recording(tmp_path / "retina.nwb")
    assert (found.spikes == spikes).all() and found.frame_s == pytest.approx(0.02)
    times[20:] += 0.1
    write_nwb(tmp_path / "pause.nwb", movie, spikes, timestamps=times)
    with pytest.raises(UserError, match="not at regular intervals"):
        read_recording(tmp_path / "pause.nwb")


def broken(tmp_path, name):
    movie, spikes = arrays()
    path = tmp_path / ("a.nwb" if "nwb" in name else "a.npz")
    if name == "nwb without trials":
        nwb = pynwb.NWBFile("test", "test", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        nwb.add_stimulus(pynwb.image.ImageSeries(name="film", data=movie, unit="n.a.", rate=50.0, starting_time=0.0))
        with pynwb.NWBHDF5IO(str(path), "w") as io:
            io.write(nwb)
    elif name == "nwb of units without spikes":
        write_nwb(path, movie, spikes, timed=False)
    elif name == "nwb of no rate":
        write_nwb(path, movie, spikes)
        with h5py.File(path, "a") as file:
            file["stimulus/presentation/film/starting_time"].attrs["rate"] = 0.0
    elif name == "nwb of two movies":
        write_nwb(path, movie, spikes, names=("one", "two"))
    elif name == "nwb of text":
        path.write_text("no NWB")
    elif name == "text":
        path.write_text("no arrays")
    else:
        content = {
            "no spikes": dict(movie=movie),
            "another length": dict(movie=movie[:-1], spikes=spikes),
            "rates": dict(movie=movie, spikes=spikes + 0.5),
            "negative": dict(movie=movie, spikes=spikes.astype(int) - 1),
            "nan": dict(movie=movie * np.nan, spikes=spikes),
            "no movement": dict(movie=0 * movie, spikes=spikes),
            "objects": dict(movie=np.array([None]), spikes=spikes),
            "frame_s": dict(movie=movie, spikes=spikes, frame_s=-1.0),
            "texts": dict(movie=np.full((30, 6, 5), "a"), spikes=spikes),
        }[name]
        np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no spikes", "it lacks spikes; it has movie"),
        ("another length", r"got \[29, 6, 5\] and \[3, 30, 2\]"),
        ("rates", "counts from 0 to 255"),
        ("negative", "counts from 0 to 255"),
        ("nan", "finite"),
        ("no movement", "not constant"),
        ("objects", "array of numbers"),
        ("frame_s", "frame_s must be positive"),
        ("texts", "must be numbers"),
        ("text", "readable|cannot be read"),
        ("nwb without trials", "expected trials, and units that have spike_times"),
        ("nwb of units without spikes", "expected trials, and units that have spike_times"),
        ("nwb of no rate", "rate of the movie must be positive, got 0.0"),
        ("nwb of two movies", "expected one movie among the stimuli, got one, two"),
        ("nwb of text", "cannot be read as a recording"),
    ],
)
def test_broken_recordings_are_named(tmp_path, name, message):
    path = broken(tmp_path, name)
    with pytest.raises(ValueError, match=message) as error:
        read_recording(path)
    assert str(path) in str(error.value)


def test_nwb_without_pynwb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    (tmp_path / "a.nwb").touch()
    with pytest.raises(UserError, match="pip install pynwb"):
        read_recording(tmp_path / "a.nwb")


def test_a_pipe_is_refused(tmp_path):
    for name in ("a.npz", "a.nwb"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} cannot be read as a recording: it is not a file"):
            read_recording(tmp_path / name)


def test_an_absent_recording(tmp_path):
    for name in ("a.npz", "a.nwb"):
        with pytest.raises(FileNotFoundError):
            read_recording(tmp_path / name)


def test_the_trace_loss_is_van_rossums_distance():
    random = np.random.default_rng(0)
    x, y = random.poisson(0.2, (2, 1, 200, 3))
    x[:, : fitting.WARM_UP], y[:, : fitting.WARM_UP] = 0, 0
    x[:, -60:], y[:, -60:] = 0, 0  # so that all traces end within
    loss = trace_loss(*(torch.from_numpy(z[0]).float()[:, None] for z in (x, y)))
    tau = fitting.TRACE_BINS
    squares = (spike_trains.van_rossum_distance(x, y, tau).sum() * 2) / (
        1 - np.exp(-2 / tau)
    )  # of a sum, not an integral
    assert loss.item() == pytest.approx(squares / (200 - fitting.WARM_UP) / 3, rel=1e-3)


@pytest.fixture(scope="module")
def small():
    """A movie, LN cells that see it, and a `Split` of their spikes.

    All draws are NumPy's, of given seeds, and the same in any order of tests with any version of PyTorch: what `judge`
    finds in so few trials is not as near to the truth in all other draws as in these.
    """
    movie = noise_movie(1200)
    drive = filtered(movie, receptive_fields(2, (8, 8), np.random.RandomState(1)))
    cells = LNCells(2 * drive / drive.std(0), bias=-2.0)
    spikes = cells.sample(60, 0)
    return movie, cells, Split(movie, spikes[:30, :1000], spikes[30:, 1000:], FRAME_S)


def test_an_ln_model_finds_ln_cells(small):
    movie, cells, split = small
    net = fit("LN", movie[:1000], split.fitted, 0, 0)
    spikes = simulate(net, movie, 400, 1)
    assert spike_trains.cc_norm(spikes.mean(0)[1000:], split.tested).min() > 0.8
    assert (spikes == simulate(net, movie, 400, 1)).all()


@pytest.mark.parametrize("kind", first_are_fast(["NSNN", "SNN", "SNN, noisy output"]))
def test_networks_learn_and_repeat_with_their_seed(small, kind):
    movie, _, split = small
    frames, trains = stacked(movie[:1000], fitting.DEPTH)[:, None], torch.from_numpy(split.fitted[:1]).float()
    losses = []
    for steps in (1, 60):
        net = fit(kind, movie[:1000], split.fitted, steps, 3)
        torch.manual_seed(0)
        losses.append(net.loss(frames, trains.transpose(0, 1)).item())
    assert losses[1] < 0.8 * losses[0]
    again = fit(kind, movie[:1000], split.fitted, 60, 3)
    assert all(torch.equal(one, other) for one, other in zip(net.state_dict().values(), again.state_dict().values()))
    spikes = simulate(net, movie[:200], 5, 0)
    assert spikes.shape == (5, 200, 2) and spikes.max() == 1
    assert (spikes[0] == spikes[1]).all() == (kind == "SNN")


def test_the_oracle_has_no_mismatch_and_a_certain_model_has_no_variability(small):
    movie, cells, split = small
    oracle = judge(cells.sample(120, 77)[:, 1000:], split.tested, FRAME_S)
    assert oracle.cc_norm == pytest.approx(1, abs=0.05) == oracle.cc_norm_smoothed
    assert oracle.fano_mismatch < 0.15 and oracle.noise_power_mismatch < 0.1
    assert oracle.distance_mismatch < 0.05 and abs(oracle.distance_excess) < 0.05
    assert oracle.victor_purpura_mismatch < 0.2
    assert oracle.fano == pytest.approx(oracle.fano_recorded, rel=0.1)
    assert oracle.noise_power == pytest.approx(oracle.noise_power_recorded, rel=0.1)
    assert oracle.reliability == pytest.approx(oracle.reliability_recorded, rel=0.15)
    certain = cells.sample(1, 5)[:, 1000:].repeat(30, 0)
    found = judge(certain, split.tested, FRAME_S)
    assert found.fano == found.noise_power == 0
    assert found.noise_power_mismatch == found.distance_mismatch == found.victor_purpura_mismatch == 1
    assert found.signal_power == pytest.approx(certain[0].var(0, ddof=1).mean())
    assert oracle.signal_power_mismatch < 0.1 and oracle.signal_power == pytest.approx(
        oracle.signal_power_recorded, rel=0.1
    )
    assert found.fano_mismatch == pytest.approx(found.fano_recorded)


def test_another_rate_is_a_mismatch_in_each_quantity(small):
    movie, cells, split = small
    brisk = judge(dataclasses.replace(cells, bias=-0.5).sample(120, 3)[:, 1000:], split.tested, FRAME_S)
    oracle = judge(cells.sample(120, 3)[:, 1000:], split.tested, FRAME_S)
    for key in ("noise_power_mismatch", "distance_mismatch", "victor_purpura_mismatch", "distance_excess"):
        assert getattr(brisk, key) > getattr(oracle, key) + 0.03
    shifted = judge(np.roll(cells.sample(120, 3), 3, axis=1)[:, 1000:], split.tested, FRAME_S)
    assert shifted.cc_norm < oracle.cc_norm - 0.2
    assert shifted.cc_norm_smoothed > shifted.cc_norm and shifted.distance_mismatch < 0.05


def test_windows_and_time_constants_are_in_seconds(small):
    """Frames of twice the length: as with windows, smoothing and time constants of half the bins."""
    movie, cells, split = small
    model = cells.sample(120, 77)[:, 1000:]
    found = judge(model, split.tested, 2 * FRAME_S)
    assert found.fano_recorded == pytest.approx(spike_trains.mean_fano_factor(split.tested, 5).mean())
    smoothed = [spike_trains.smoothed(one, 1.0) for one in (model, split.tested)]
    assert found.cc_norm_smoothed == pytest.approx(spike_trains.cc_norm(*smoothed).mean())
    edits = [
        spike_trains.victor_purpura_distance(one[:5], one[5:10], 0.4).mean((0, 1)) for one in (model, split.tested)
    ]
    assert found.victor_purpura_mismatch == pytest.approx(np.abs(edits[0] / edits[1] - 1).mean())
    assert judge(model, split.tested, 1.0).fano_recorded > 0  # windows of a bin, at least


@pytest.mark.filterwarnings("error")
def test_silent_cells_are_left_out_where_they_have_no_value(small):
    movie, cells, split = small
    silent = split.tested.copy()
    silent[..., 0] = 0
    assert has_signal(silent).tolist() == [False, True]
    one = judge(cells.sample(120, 77)[:, 1000:], silent, FRAME_S)
    assert all(np.isfinite(value) for value in vars(one).values())
    assert one.distance_mismatch < 0.05
    assert one.fano == pytest.approx(one.fano_recorded, rel=0.1)  # means over the same cells
    weak = judge(dataclasses.replace(cells, gain=cells.gain / 2).sample(120, 77)[:, 1000:], split.tested, FRAME_S)
    assert weak.signal_power < 0.5 * weak.signal_power_recorded and weak.signal_power_mismatch > 0.5
    none = judge(np.zeros_like(silent), np.zeros_like(silent), FRAME_S)
    assert np.isnan(none.cc_norm) and np.isnan(none.distance_mismatch) and none.noise_power == 0


def test_a_cell_that_does_not_respond_to_the_movie_does_not_count_in_cc_norm(small):
    _, cells, split = small
    model = cells.sample(120, 77)[:, 1000:]
    random = (np.random.default_rng(0).random((*split.tested.shape[:2], 6)) < 0.1).astype(np.uint8)
    recorded = np.concatenate([split.tested, random], axis=2)
    chosen = has_signal(recorded)
    assert chosen[:2].all() and chosen[2:].sum() <= 1
    flat = np.random.default_rng(1).random((120, 200, 2)) < 0.1  # a model that does not follow the movie
    assert abs(judge(flat, split.tested, FRAME_S).cc_norm) < 0.5
    of_all = judge(
        np.concatenate([model, random.repeat(4, 0)], axis=2)[..., [0, 1, *np.flatnonzero(~chosen)]],
        recorded[..., [0, 1, *np.flatnonzero(~chosen)]],
        FRAME_S,
    )
    assert of_all.cc_norm == pytest.approx(judge(model, split.tested, FRAME_S).cc_norm)


@pytest.fixture
def two_seeds(monkeypatch):
    """Two repetitions, which is enough for an interval: each takes a second."""
    monkeypatch.setattr(Study, "seeds", lambda study, purpose, **counts: [study.seed_for(purpose, n) for n in (0, 1)])


@pytest.mark.slow
def test_a_comparison_has_intervals_over_seeds_and_does_not_depend_on_the_number_of_processes(
    small, tmp_path, monkeypatch, two_seeds
):
    movie, _, split = small
    monkeypatch.setattr(experiments, "QUICK_STEPS", 3)
    found = [compare(Study(tmp_path, 0, True, workers), split, "test") for workers in (1, 2)]
    assert rounded(found[0]) == rounded(found[1])
    assert set(found[0]) == set(fitting.NETWORKS) and found[0]["NSNN"]["cc_norm"].seeds == 2
    assert found[0]["SNN"]["fano"].mean == 0 < found[0]["NSNN"]["fano"].mean


@pytest.mark.slow
def test_fits_have_all_networks_and_the_oracle_for_both_kinds_of_cells(
    digits, tmp_path, monkeypatch, figures, two_seeds
):
    monkeypatch.setattr(experiments, "QUICK_STEPS", 1)
    monkeypatch.setattr(experiments, "TEST_TRIALS", 25)
    monkeypatch.setattr(experiments, "NETWORKS", {"SNN": fitting.NETWORKS["SNN"]})
    found = experiments.fits(Study(tmp_path, quick=True), digits)["results"]
    for name, picture in (("LN cells", "fits_ln.png"), ("LIF cells", "fits_lif.png")):
        assert set(found[name]) == {"SNN", "oracle"}
        assert found[name]["oracle"]["cc_norm"].mean == pytest.approx(1, abs=0.02)  # 6 standard errors
        assert found[name]["oracle"]["cc_norm"].low < found[name]["oracle"]["cc_norm"].high
        assert found[name]["SNN"]["cc_norm"].mean < 0.9 and found[name]["SNN"]["noise_power"].mean == 0
        bars = [bar.get_height() for bar in figures[picture].axes[0].patches]
        assert bars == [found[name][network]["cc_norm"].mean for network in ("SNN", "oracle")]


@pytest.mark.parametrize(
    ("movie", "spikes", "message"),
    [
        (np.zeros((50, 8, 8)), np.zeros((2, 50, 1)), "at least 100 frames"),
        (np.zeros((200, 4, 8)), np.zeros((2, 200, 1)), "5x5 pixels"),
        (np.zeros((200, 8, 8)), np.zeros((2, 199, 1)), "as many bins"),
        (np.zeros((200, 8, 8)), np.full((2, 200, 1), 2), "spikes of 0 or 1"),
    ],
)
def test_what_cannot_be_fitted_is_named(movie, spikes, message):
    with pytest.raises(UserError, match=message):
        fit("NSNN", movie, spikes, 1, 0)


def test_a_recording_of_one_trial_or_of_many_spikes_in_a_bin_is_refused_before_anything_is_fitted(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiments, "fit", None)
    movie, _, split = small
    spikes = np.concatenate([split.fitted, split.tested], axis=1)
    with pytest.raises(UserError, match="at least 2 trials"):
        experiments.recording(Study(tmp_path), Recording(movie, spikes[:1]), "one")
    spikes[:, -1] = 3
    with pytest.raises(UserError, match="a bin has 3: use shorter bins"):
        experiments.recording(Study(tmp_path), Recording(movie, spikes), "many")
    spikes[:] = 0
    with pytest.raises(UserError, match="few has 30 frames; 80 % of them must be at least 100"):
        experiments.recording(Study(tmp_path), Recording(movie[:30], spikes[:, :30]), "few")


def test_recordings_are_checked():
    movie, spikes = arrays()
    assert Recording(movie, spikes).spikes.dtype == np.uint8
    with pytest.raises(UserError, match=r"expected movie \[frames, H, W\]"):
        Recording(movie[0], spikes)
    for wrong in (np.full(movie.shape, 0.1), 1e39 * movie, np.where(movie == movie.max(), np.nan, movie)):
        with pytest.raises(UserError, match="finite and not constant"):
            Recording(wrong, spikes)


@pytest.fixture(scope="module")
def digits():
    return DATASETS["mnist5k"].load().train.images[:, 0]


@pytest.mark.slow
def test_metrics_recover_the_truth(digits, tmp_path, figures):
    rows = experiments.truth(Study(tmp_path, quick=True), digits)["rows"]
    expected = {(cells, metric) for cells in ("Bernoulli", "Poisson") for metric in experiments.METRICS}
    expected.remove(("Poisson", "Victor-Purpura distance, q = 2"))  # has no closed form
    expected |= {(f"pair with {share}% common spikes", "noise correlation") for share in (10, 50)}
    assert {(row.cells, row.metric) for row in rows} == expected and len(rows) == len(expected)
    assert max(abs(row.z) for row in rows) < deviations(len(rows))
    assert all(abs(row.mean - row.truth) < 0.03 * max(abs(row.truth), 0.1) for row in rows)
    labels = [label.get_text() for label in figures["truth.png"].axes[0].get_yticklabels()]
    assert labels == [f"{row.metric}: {row.cells}" for row in reversed(rows)]


@pytest.mark.slow
def test_pooled_trials_are_decoded_best_with_some_noise(digits):
    found = []
    for std in (0.0, 0.3, 1.5):
        responses = [experiments.respond(digits, std, seed) for seed in range(10)]
        found.append(Responses(*np.mean([list(vars(one).values()) for one in responses], axis=0)))
    certain, some, much = found
    assert certain.reliability == pytest.approx(1) and certain.fano == 0
    assert certain.reliability > some.reliability > much.reliability
    assert certain.fano < some.fano < much.fano
    assert certain.decoding_1 > some.decoding_1 > much.decoding_1
    # The deviation of these differences is 0.02.
    assert certain.decoding_20 + 0.03 < some.decoding_20 > much.decoding_20 + 0.1


def test_the_script_fits_networks_to_a_recording(small, tmp_path, monkeypatch, undrawn, figures):
    movie, _, split = small
    monkeypatch.setattr(experiments, "QUICK_STEPS", 2)
    spikes = np.concatenate([split.fitted, split.tested], axis=1)
    np.savez_compressed(tmp_path / "retina.npz", movie=movie, spikes=spikes, frame_s=0.02)
    arguments = [
        "--quick",
        "--workers",
        "1",
        "--recording",
        str(tmp_path / "retina.npz"),
        "--out",
        str(tmp_path / "out"),
    ]
    _, content = cli.study("coding", "", main_coding.chosen, arguments, main_coding.add_flags)
    found = content["experiments"]["recording"]
    assert found["frames"] == 960 and found["test_frames"] == 240 and found["trials"] == 30
    assert set(found["results"]) == set(fitting.NETWORKS)
    assert (found["file"], found["frame_s"], found["movie"]) == ("retina.npz", 0.02, [1200, 8, 8])
    assert found["cells"] == found["cells_with_signal"] == 2
    ticks = [label.get_text() for label in figures["fits_recording.png"].axes[0].get_xticklabels()]
    assert [tick.replace("\n", " ") for tick in ticks] == list(found["results"])
    with pytest.raises(SystemExit) as error:
        cli.study("coding", "", main_coding.chosen, ["--recording", "nowhere.npz"], main_coding.add_flags)
    assert error.value.code == 1


@pytest.mark.slow
def test_the_scale_of_the_noise_has_gains_over_the_same_population_without(digits, tmp_path, monkeypatch, figures):
    def measured(digits, std, seed):
        level = seed % 7
        return Responses(0.0, std + level, std + level, level - std, level, level + 2 * std)

    monkeypatch.setattr(experiments, "respond", measured)
    study = Study(tmp_path, quick=True)
    rows = experiments.scale(study, digits)["rows"]
    levels = [seed % 7 for seed in study.seeds("scale", full=10, quick=5)]
    assert [row["std"] for row in rows][:2] == [0.0, 0.02]
    assert rows[0]["fano"].mean == pytest.approx(np.mean(levels)) and len(set(levels)) > 1
    for row in rows:
        assert row["decoding_1_gain"].mean == pytest.approx(-row["std"])
        assert row["decoding_20_gain"].mean == pytest.approx(2 * row["std"]) == row["decoding_20_gain"].low
    decoding = lines_of(figures["noise_scale.png"].axes[2])
    assert decoding["20"][1] == [row["decoding_20"].mean for row in rows]


@pytest.mark.parametrize("frame_s", [None, 0.01])
def test_a_recording_without_response_or_time_is_told(tmp_path, caplog, frame_s):
    movie, spikes = noise_movie(400), (np.random.default_rng(1).random((10, 400, 2)) < 0.2).astype(np.uint8)
    with pytest.raises(UserError, match="no cell of it responds to the last fifth"):
        experiments.recording(Study(tmp_path), Recording(movie, spikes, frame_s), "it")
    assert ("how long a frame is" in caplog.text) == (frame_s is None)


def test_noise_makes_lif_cells_less_reliable():
    drive = np.random.default_rng(0).standard_normal((400, 3))
    found = [
        spike_trains.reliability(LIFCells(drive, noise=Gaussian(std)).sample(20, 0)).mean() for std in (0.05, 0.3, 1.0)
    ]
    assert found[0] > found[1] > found[2]
