"""Sounds as pictures: eight kinds of generated sounds in a table that a run can read.

    python examples/audio/make_sounds.py sounds.parquet

Every clip is 1.5 s at 16 kHz, made by a formula with drawn pitch, tempo and onset, heard by one of
twelve recorders in one of four styles, and stored as its log-mel spectrogram: a grey PNG, time to
the right, pitch upwards. Recorders are the clients, styles the domains. All that a modality of
your own needs is such a table: encoded pictures, a label, and who holds what.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_core.seeds import derive

Floats = npt.NDArray[np.float64]
Draw = np.random.Generator

RATE = 16_000  # samples per second
HOP, WINDOW, NUM_MELS, NUM_FRAMES = 384, 1024, 64, 64
NUM_SAMPLES = HOP * NUM_FRAMES
TIME: Floats = np.arange(NUM_SAMPLES) / RATE  # [n], seconds
LOUDNESS_RANGE_DB = 60.0
"""What lies further below the loudest cell of a picture is black."""
RECORDERS_PER_STYLE = 3
TEMPLATE = "a spectrogram of this sound: {}."


# -- sounds, each [n] with a largest value of about 1 ---------------------------------------------


def whistle(draw: Draw) -> Floats:
    vibrato = draw.uniform(0, 0.02) * np.sin(2 * np.pi * draw.uniform(4, 7) * TIME)
    return _tone(draw.uniform(900, 2600) * (1 + vibrato)) * _held(draw)


def siren(draw: Draw) -> Floats:
    swing = np.sin(2 * np.pi * (draw.uniform(0.5, 1.3) * TIME + draw.uniform()))
    pitch = draw.uniform(600, 1000) * 2.0 ** (draw.uniform(0.3, 0.7) * swing)
    return _tone(pitch) + 0.4 * _tone(2 * pitch) + 0.2 * _tone(3 * pitch)


def bird_song(draw: Draw) -> Floats:
    sound = np.zeros(NUM_SAMPLES)
    rise, start = draw.uniform(-1, 1), draw.uniform(1800, 4500)
    for onset in np.arange(draw.uniform(0, 0.2), 1.5, draw.uniform(0.12, 0.3)):
        length = draw.uniform(0.05, 0.11)
        phase = np.clip((TIME - onset) / length, 0, 1)
        sound += _tone(start * 2.0 ** (rise * phase)) * np.sin(np.pi * phase) ** 2
    return sound


def bell(draw: Draw) -> Floats:
    pitch, onset = draw.uniform(250, 700), draw.uniform(0, 0.4)
    partials = (0.5, 1.0, 1.19, 1.5, 2.0, 2.67, 4.1)  # hum, prime, tierce, quint and above
    struck = [_struck(onset, 0.9 / ratio**0.7) * _tone(pitch * ratio) for ratio in partials]
    return np.sum(struck, axis=0) / 3


def clock(draw: Draw) -> Floats:
    ring, sound = draw.uniform(2500, 5000), np.zeros(NUM_SAMPLES)
    for i, onset in enumerate(np.arange(draw.uniform(0, 0.25), 1.5, draw.uniform(0.2, 0.4))):
        click = 0.6 * draw.standard_normal(NUM_SAMPLES) + _tone(ring * (1.0, 0.8)[i % 2])
        sound += click * _struck(onset, 0.008)
    return sound


def drum(draw: Draw) -> Floats:
    beat, sound = draw.uniform(0.15, 0.3), np.zeros(NUM_SAMPLES)
    for step in range(int(1.5 / beat)):
        if step % 4 and draw.uniform() < 0.4:  # the first beat of four is never left out
            continue
        struck = _struck(step * beat, 0.09)
        skin = _tone(draw.uniform(70, 90) * (1 + struck))
        sound += struck * (skin + 0.15 * draw.standard_normal(NUM_SAMPLES))
    return sound


def rain(draw: Draw) -> Floats:
    sound = 0.15 * draw.standard_normal(NUM_SAMPLES)
    for onset in draw.uniform(0, 1.5, draw.integers(20, 60)):
        sound += 0.4 * _tone(draw.uniform(2000, 6000)) * _struck(onset, 0.004)
    return sound


def engine(draw: Draw) -> Floats:
    pitch = draw.uniform(35, 80) * (1 + draw.uniform(-0.3, 0.3) * TIME)
    hum = sum(_tone(k * pitch) / k for k in range(1, 16))
    chug = 1 + 0.5 * _tone(pitch / 2)
    return (hum + 0.1 * draw.standard_normal(NUM_SAMPLES)) * chug / 4


SOUNDS: Mapping[str, Callable[[Draw], Floats]] = {
    "bell": bell,
    "bird song": bird_song,
    "clock": clock,
    "drum": drum,
    "engine": engine,
    "rain": rain,
    "siren": siren,
    "whistle": whistle,
}


def _tone(pitch: Floats | float) -> Floats:
    """A sine [n] of a pitch in hertz, which may change over time."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(pitch, NUM_SAMPLES)) / RATE)


def _struck(onset: float, decay_s: float) -> Floats:
    """Loudness [n] of something that is struck at ``onset`` and falls to 1/e in ``decay_s``."""
    after = np.maximum(TIME - onset, 0)
    return np.where(onset <= TIME, np.exp(-after / decay_s), 0.0)


def _held(draw: Draw) -> Floats:
    """Loudness [n] of something that begins and ends."""
    start, end = draw.uniform(0, 0.4), draw.uniform(0.9, 1.5)
    return np.clip((TIME - start) / 0.05, 0, 1) * np.clip((end - TIME) / 0.05, 0, 1)


# -- how they are recorded ------------------------------------------------------------------------


def studio(sound: Floats, draw: Draw) -> Floats:
    return _with_noise(sound, draw.standard_normal(NUM_SAMPLES), 40.0)


def telephone(sound: Floats, draw: Draw) -> Floats:
    """The band of a telephone line, its hiss, and a microphone that is driven too hard."""
    noisy = _with_noise(sound, draw.standard_normal(NUM_SAMPLES), 25.0)
    loud = np.tanh(draw.uniform(1, 4) * noisy / np.abs(noisy).max())
    return _filtered(loud, lambda hertz: ((hertz > 300) & (hertz < 3400)) + 1e-3)


def hall(sound: Floats, draw: Draw) -> Floats:
    """A room that answers for a second or so."""
    answer = draw.standard_normal(NUM_SAMPLES) * np.exp(-TIME / draw.uniform(0.15, 0.4))
    spectra = np.fft.rfft(sound, 2 * NUM_SAMPLES) * np.fft.rfft(answer, 2 * NUM_SAMPLES)
    echo = np.fft.irfft(spectra)[:NUM_SAMPLES]
    return sound / np.abs(sound).max() + echo / np.abs(echo).max()


def street(sound: Floats, draw: Draw) -> Floats:
    """Traffic, louder in the low notes (power as 1/f), 0 to 15 dB below the sound."""
    pink = _filtered(draw.standard_normal(NUM_SAMPLES), lambda hertz: (hertz + 20) ** -0.5)
    return _with_noise(sound, pink, draw.uniform(0, 15))


STYLES: Mapping[str, Callable[[Floats, Draw], Floats]] = {
    "hall": hall,
    "street": street,
    "studio": studio,
    "telephone": telephone,
}


@dataclass(frozen=True)
class Recorder:
    """A client. tilt: what its microphone makes of high notes, in dB per octave above 1 kHz.

    shares: how often it hears each kind of sound [C].
    """

    name: str
    style: str
    tilt: float
    shares: Floats

    def hears(self, sound: Floats, draw: Draw) -> Floats:
        recorded = STYLES[self.style](sound, draw)
        octaves = 10.0 ** (self.tilt / 20 * np.log2(np.maximum(_hertz(), 20) / 1000))
        return _filtered(recorded, lambda hertz: octaves)


def _with_noise(sound: Floats, noise: Floats, ratio_db: float) -> Floats:
    wanted = np.sqrt(np.mean(sound**2) / np.mean(noise**2) / 10 ** (ratio_db / 10))
    return sound + wanted * noise


def _filtered(sound: Floats, gain: Callable[[Floats], Any]) -> Floats:
    return np.fft.irfft(np.fft.rfft(sound) * gain(_hertz()), NUM_SAMPLES)


def _hertz() -> Floats:
    return np.fft.rfftfreq(NUM_SAMPLES, 1 / RATE)


# -- pictures -------------------------------------------------------------------------------------


@cache
def mel_filters() -> Floats:
    """Triangles [mels, bins] of equal width on the mel scale 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    mels = np.linspace(2595 * np.log10(1 + 50 / 700), top, NUM_MELS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)  # [mels + 2], hertz
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)[None]  # [1, bins]
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    width = np.maximum(np.stack([middle - low, high - middle]), RATE / WINDOW)  # none is empty
    return np.clip(1 - np.abs(bins - middle) / np.where(bins < middle, *width), 0, None)


def log_mel(sound: Floats) -> npt.NDArray[np.uint8]:
    """Loudness [mels, frames] from 0 (60 dB below the loudest cell) to 255, low notes last."""
    padded = np.pad(sound, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:NUM_FRAMES]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2  # [frames, bins]
    loudness = 10 * np.log10(mel_filters() @ power.T + 1e-12)  # [mels, frames]
    shown = 1 + (loudness - loudness.max()) / LOUDNESS_RANGE_DB
    return np.round(255 * np.clip(shown, 0, 1)).astype(np.uint8)[::-1]


def as_png(picture: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return file.getvalue()


# -- the table ------------------------------------------------------------------------------------


def recorders(seed: int) -> list[Recorder]:
    found = []
    for style in STYLES:
        for number in range(1, RECORDERS_PER_STYLE + 1):
            name = f"{style} {number}"
            draw = np.random.default_rng(derive(seed, "recorder", name))
            shares = draw.dirichlet(np.ones(len(SOUNDS)))
            found.append(Recorder(name, style, draw.uniform(-4, 4), shares))
    return found


def write_sounds(path: Path, num_train: int = 100, num_test: int = 40, seed: int = 0) -> int:
    """Write the table; ``num_train`` and ``num_test`` clips of each recorder. Returns its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    classes, rows = list(SOUNDS), []
    for recorder in recorders(seed):
        for split, number in (("train", num_train), ("test", num_test)):
            for i in range(number):
                draw = np.random.default_rng(derive(seed, "clip", recorder.name, split, i))
                name = classes[draw.choice(len(classes), p=recorder.shares)]
                image = as_png(log_mel(recorder.hears(SOUNDS[name](draw), draw)))
                told = {"domain": recorder.style, "client": recorder.name, "split": split}
                rows.append({"image": image, "label": name, **told})
    about = {"name": "sounds", "templates": [TEMPLATE], "classes": classes}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"fedarena": json.dumps(about)})
    pq.write_table(table, path)
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write generated sounds as pictures.")
    parser.add_argument("out", type=Path, help="Parquet file to write")
    parser.add_argument("--train", type=int, default=100, help="training clips per recorder")
    parser.add_argument("--test", type=int, default=40, help="test clips per recorder")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    write_sounds(asked.out, asked.train, asked.test, asked.seed)


if __name__ == "__main__":
    main()
