"""Miniatures of the official layouts: real file names, tables as they are published, images of 64 pixels or more.

The full-length lists have the published numbers of rows, and stand in for files that need not be there.
"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import savemat

OFFICIAL_SET = {"training": 7058, "validation": 1000, "test": 2015}
LETTERS = "photographs"


def write_image(path: Path, size=(80, 64), seed=0):
    """Write a smooth random image of (width, height)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize(size, Image.Resampling.BICUBIC).save(path)


def write_csv(path: Path, header, rows, *, separator=",", end="\n", encoding="utf-8", quote=csv.QUOTE_MINIMAL):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quote)
        writer.writerows([header, *rows])


def koniq_names(number=10_073):
    """File names as KonIQ has them: flickr numbers of 8 to 11 digits."""
    return [f"{10_004_473_376 - 971 * index if index % 3 else 25_000_000 + 7 * index}.jpg" for index in range(number)]


def koniq_sets_rows(names):
    """Rows of koniq10k_distributions_sets.csv in order of the names, with the official shares of its sets."""
    number = len(names)
    validation, test = round(1000 / 10_073 * number), round(2015 / 10_073 * number)
    words = ["training"] * (number - validation - test) + ["validation"] * validation + ["test"] * test
    rng = np.random.default_rng(3)
    rng.shuffle(words)
    scores = np.linspace(3.91, 88.39, number)
    rng.shuffle(scores)
    return [
        [name, *(0.05, 0.2, 0.3, 0.35, 0.1), f"{score:.6f}", "0.6", word]
        for name, score, word in zip(names, scores, words, strict=True)
    ]


KONIQ_SETS = ["image_name", "c1", "c2", "c3", "c4", "c5", "MOS", "SD", "set"]
KONIQ_SCORES = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "MOS_zscore"]


def koniq_scores_rows(names):
    """Rows of koniq10k_scores_and_distributions.csv: the same ratings on 1-5, MOS_zscore on 0-100, no split."""
    return [
        [row[0], *(5, 20, 30, 35, 10), 100, f"{1 + float(row[6]) / 100 * 4:.6f}", "0.6", row[6]]
        for row in koniq_sets_rows(names)
    ]


def koniq(folder: Path, *, number=20, tables=("sets", "scores"), sizes=("512x384",)):
    """KonIQ-10k with its one or both csv files; 1024x768 and 512x384 become 96x72 and 80x64."""
    names = koniq_names(number)
    for size in sizes:
        for seed, name in enumerate(names):
            write_image(folder / size / name, {"512x384": (80, 64), "1024x768": (96, 72)}[size], seed)
    if "sets" in tables:
        write_csv(folder / "koniq10k_distributions_sets.csv", KONIQ_SETS, koniq_sets_rows(names))
    if "scores" in tables:
        rows = koniq_scores_rows(names)
        write_csv(folder / "koniq10k_scores_and_distributions.csv", KONIQ_SCORES, rows, quote=csv.QUOTE_NONNUMERIC)
    return folder


def kadid_rows(references=81, types=25, levels=5):
    """Rows of KADID's dmos.csv: higher is better in spite of the name."""
    return [
        [f"I{ref:02d}_{kind:02d}_{level:02d}.png", f"I{ref:02d}.png", f"{5.71 - 0.78 * level - 0.01 * kind:.2f}", "0.9"]
        for ref in range(1, references + 1)
        for kind in range(1, types + 1)
        for level in range(1, levels + 1)
    ]  # fmt: skip


KADID = ["dist_img", "ref_img", "dmos", "var"]


def kadid(folder: Path, *, references=4, types=2, levels=3):
    rows = kadid_rows(references, types, levels)
    for seed, row in enumerate(rows):
        write_image(folder / "images" / row[0], seed=seed)
    for name in sorted({row[1] for row in rows}):
        write_image(folder / "images" / name)
    write_csv(folder / "dmos.csv", KADID, rows)
    return folder


SPAQ = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]


def spaq_rows(number=11_125):
    scores = np.random.default_rng(5).permutation(np.linspace(2.5, 95.8, number))
    return [[f"{index:05d}.jpg", round(float(mos), 2), 50, 51, 52, 53, 54] for index, mos in enumerate(scores, start=1)]


def spaq(folder: Path, *, number=20, table="xlsx"):
    """SPAQ with photographs of several sizes, upright and across."""
    rows = spaq_rows(number)
    for seed, row in enumerate(rows):
        write_image(folder / "TestImage" / row[0], [(96, 72), (72, 96), (80, 64)][seed % 3], seed)
    annotations = folder / "Annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    exif = pd.DataFrame({"Image name": [row[0] for row in rows], "ISO": 100})
    exif.to_excel(annotations / "EXIF_tags.xlsx", index=False)
    if table == "xlsx":
        path = annotations / "MOS and Image attribute scores.xlsx"
        pd.DataFrame(rows, columns=SPAQ).to_excel(path, index=False)
    else:
        write_csv(annotations / "MOS and Image attribute scores.csv", SPAQ, rows)
    return folder


NIPS = ["ImageId", "URL", "x1", "y1", "x2", "y2", "TrueLabel", "TargetClass", "OriginalLandingURL", "License", "Author"]


def nips_rows(number=1000):
    return [
        [f"{index * 7919:016x}", "https://example.org/a.jpg", 0, 0, 1, 1, 305, 883, "https://example.org", "CC", "A, B"]
        for index in range(1, number + 1)
    ]


def nips2017(folder: Path, *, number=12):
    """The competition's images; 64 pixels instead of 299."""
    rows = nips_rows(number)
    for seed, row in enumerate(rows):
        write_image(folder / "images" / f"{row[0]}.png", (64, 64), seed)
    write_csv(folder / "images.csv", NIPS, rows)
    return folder


def livec_rows(number=1_162):
    """(name, MOS, standard deviation) as the MATLAB files list them, the seven images that trained the raters first."""
    rng = np.random.default_rng(11)
    scores = rng.permutation(np.linspace(3.4, 92.4, number))
    names = [f"{index + 3}.{'bmp' if index % 8 else 'JPG'}" for index in range(number)]
    training = [(f"t{index}.bmp", 10.0 * index, 15.0) for index in range(1, 8)]
    return training + [(name, float(score), 18.0) for name, score in zip(names, scores, strict=True)]


def write_livec_tables(folder: Path, rows):
    """The release's MATLAB files: names as a column of cells, scores and deviations as one row each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.empty((len(rows), 1), dtype=object)
    names[:, 0] = [row[0] for row in rows]
    savemat(folder / "AllImages_release.mat", {"AllImages_release": names})
    for column, name in ((1, "AllMOS_release"), (2, "AllStdDev_release")):
        savemat(folder / f"{name}.mat", {name: np.array([[row[column] for row in rows]])})


def livec(folder: Path, *, number=20):
    """LIVE In the Wild with photographs of two sizes, and the raters' training images in their folder."""
    rows = livec_rows(number)
    for seed, (name, _, _) in enumerate(rows):
        place = "trainingImages" if name.startswith("t") else "."
        write_image(folder / "Images" / place / name, [(64, 64), (80, 64)][seed % 2], seed)
    write_livec_tables(folder / "Data", rows)
    return folder


AGIQA = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
GENERATORS = ("AttnGAN_normal", "DALLE2_normal", "glide_normal", "midjourney_normal", "sd1.5_normal", "xl2.2_normal")


def agiqa3k_rows(prompts=300, generators=GENERATORS):
    """Rows of data.csv: every generator made an image of every prompt; prompts may hold commas."""
    number = prompts * len(generators)
    scores = np.random.default_rng(13).permutation(np.linspace(0, 4.4887, number))
    pairs = [(generator, prompt) for generator in generators for prompt in range(prompts)]
    return [
        [f"{generator}_{prompt:03d}.jpg", f"a portrait, number {prompt}", "", "", "", f"{score:.9f}", 0.6, 4.9, 0.7]
        for (generator, prompt), score in zip(pairs, scores, strict=True)
    ]


def agiqa3k(folder: Path, *, prompts=10, generators=GENERATORS[:2]):
    """AGIQA-3K; 64 pixels instead of 512."""
    rows = agiqa3k_rows(prompts, generators)
    for seed, row in enumerate(rows):
        write_image(folder / "AGIQA-3K" / row[0], (64, 64), seed)
    write_csv(folder / "data.csv", AGIQA, rows)
    return folder


def images(folder: Path, *, number=12, scored=True):
    """A folder of a user's own: two sizes, a subfolder, and a table of scores on 1-5."""
    names = [f"{'day' if index % 2 else 'night'}/{LETTERS[index % 11]}{index}.png" for index in range(number)]
    for seed, name in enumerate(names):
        write_image(folder / name, [(80, 64), (64, 64)][seed % 2], seed)
    if scored:
        rows = [[name, round(1.2 + 3.6 * place / number, 3)] for place, name in enumerate(names)]
        write_csv(folder / "scores.csv", ["image", "mos"], rows)
    return folder


WRITERS = {
    "koniq": koniq,
    "kadid": kadid,
    "spaq": spaq,
    "nips2017": nips2017,
    "livec": livec,
    "agiqa3k": agiqa3k,
    "folder": images,
    "union": livec,  # and mini, which is embedded
}
