"""What the data side of a run can be told. The comment behind a field is its help text in `lacuna config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BoxForm = Literal["xyxy", "xywh"]  # corners; or corner, width and height


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, how they are cut, and the constants of their order."""

    train: str  # tar shards: a path, a glob, a brace range, several joined by commas, or "embedded" (photographs shipped with scikit-image)
    val: str | None = None  # shards of labelled images for evaluation; None with "embedded" takes its held-out regions
    image_size: tuple[int, int] = (224, 224)  # height and width of a training crop, pixels
    in_chans: int = 3  # channels: 3 for colour, 1 for grayscale, others for shards that hold as many
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, of values in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # per channel, of values in 0..1
    batch_size: int = 256  # images in one optimizer step, over all ranks and accumulation
    crop_scale: tuple[float, float] = (0.2, 1.0)  # area of the random resized crop, as a share of the image
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)  # aspect ratio of the crop, width over height
    flip_prob: float = 0.5  # probability of a left-right flip
    rand_augment: str | None = None  # RandAugment on crops, in timm's words, for example rand-m9-mstd0.5-inc1; None: off
    erase_prob: float = 0.0  # probability that a rectangle of a crop is replaced by noise
    mixup: float = 0.0  # alpha of the share of two images that are blended, each pixel; 0: off
    cutmix: float = 0.0  # alpha of the share of an image that a rectangle of another leaves; 0: off
    mix_prob: float = 1.0  # probability of an image to be mixed at all
    mix_switch_prob: float = 0.5  # probability of cutmix rather than mixup where both are on
    crops_per_decode: int = 1  # k > 1: k consecutive steps share their images, with other crops and masks; an epoch then takes k times the steps
    apply_exif: bool = True  # turn images upright by their EXIF orientation
    boxes: BoxForm | None = None  # how the list "boxes" in a sample's json is written, pixels of the upright image: xyxy or xywh; None: not read
    maps: str | None = None  # member that holds the class of every pixel beside its image, a PNG of class numbers: seg.png, say; None: not read
    map_first: int = 0  # number of the first class in a map; those of the others follow
    map_void: int | None = 255  # number of pixels that are of no class, which count nowhere; None: there are none
    map_names: tuple[str, ...] = ()  # what the classes are called in tables and pictures, in order; none: by their numbers
    max_pixels: int = 64_000_000  # larger images are refused by their header, pixels
    workers: int = 2  # loader processes of each rank; 0 decodes in the training process
    prefetch: int = 2  # batches each worker prepares ahead
    timeout_s: float = 300.0  # a loader that gives no batch for so long ends the attempt, seconds
    lanes: int = 32  # lanes the sample line is cut into; a constant of the run's order
    block: int = 65_536  # samples permuted together inside a lane; a constant of the run's order
    error_ratio: float = 0.001  # share of bad samples among the last 100,000 above which the run stops
    error_run: int = 50  # bad samples in a row above which the run stops
    cache_dir: str | None = None  # where remote shards are kept; None: inside the run directory
    cache_gb: float = 100.0  # size of that cache, gigabytes
