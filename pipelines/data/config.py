"""Settings of ingest: where the two corpora are, how they are cut, what is refused."""

from dataclasses import dataclass

from models.config import NonNegativeFloat, PositiveFloat, PositiveInt, Share


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a video may ask of the machine before it is refused (pipelines/data/decode/decoder.py)."""

    max_bytes: int = 4 << 30
    """Largest file."""
    max_pixels: int = 4096 * 4096
    """Largest frame, pixels."""
    max_frames: int = 500_000
    """Most frames."""
    max_seconds: float = 14_400.0
    """Longest video."""
    timeout_s: float = 120.0
    """Longest silence of the decoder before it is replaced and the video refused."""
    memory_bytes: int = 4 << 30
    """Address space of the decoding process beyond what it starts with."""


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Which videos and windows are worth training on (pipelines/data/curate/quality.py).

    Pictures are judged as ingested: at data.height x data.width and at the corpus's frame rate. A filter
    is off at its default. Brightness is the stored luma (gamma-coded), from 0 (black) to 1 (white).
    """

    cuts: bool = True
    """Find hard cuts between shots, so that no window shows two shots. Needs the extra `curate`."""
    cut_threshold: float = 4.5
    """How many times larger the change at a cut is than the mean change of the two frames before and the two
    after. A flash of one or two frames reaches 4, a steady pan or a fade 1; what stays (a longer flash, a
    light switched on) counts as a cut. Lower finds more cuts in fast motion, and more that are none."""
    scores: bool = True
    """Measure each window: its brightness, motion, flash, sharpness and perceptual hashes. The settings below
    and the histograms of `sostenuto inspect` need it; without it ingest is a few per cent faster."""
    min_brightness: Share = 0.0
    """Least mean brightness of a window, 0 ... 1. Daylight has 0.3 ... 0.7, a night scene about 0.1."""
    min_motion: NonNegativeFloat = 0.0
    """Least motion of a window: mean change of a pixel's brightness per second, at 32x32 pixels, without
    changes of the whole picture at once. A still has 0, an empty scene from a fixed camera up to 0.02, a
    speaker 0.1, sport and hand-held pictures 0.3 ... 1."""
    max_motion: float | None = None
    """Most motion of a window, on the scale of min_motion."""
    max_flash: Share = 1.0
    """Largest step of the mean brightness from one frame to the next within a window, 0 ... 1. Plain
    film stays below 0.1, a strobe from black to white has 1."""
    min_sharpness: Share = 0.0
    """Least mean sharpness of a window: the share of the differences between neighbouring pixels that another
    blur over 9 pixels would remove, 0 ... 1. Crisp film has 0.6 ... 0.85, an enlarged or blurred one 0.3 or
    less, hard edges 0.89, a frame of one colour 0."""
    min_seconds: NonNegativeFloat = 0.0
    """Shortest video."""
    aspects: tuple[str, ...] = ()
    """Aspect ratios that are kept, of 16:9, 4:3, 1:1, 3:4 and 9:16; a video belongs to the nearest, before it
    is cropped. Empty keeps all."""
    duplicate_distance: int | None = None
    """Windows of different videos are near duplicates, of which only one is kept, when the perceptual hashes
    of their first, middle and last frames each differ in at most this many of 64 bits. A video encoded again
    differs by 0 ... 8, another video by 15 or more. null keeps all."""
    duplicates_across: bool = False
    """Look for near duplicates between the corpora too; the LONG window is kept, as LONG is scarce."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The two corpora and their windows (pipelines/data)."""

    short: str | None = None
    """The SHORT corpus: path or URI of a folder, a tar or a manifest; None is the built-in world's."""
    long: str | None = None
    """The LONG corpus, likewise; None is the built-in world's."""
    links: str | None = None
    """The one folder, besides the corpus, where links in a corpus may end, such as `blobs` of a Hugging Face
    cache. A link that ends anywhere else is refused."""
    fps: PositiveFloat | None = None
    """Frames per second after resampling by timestamps; None keeps every frame."""
    height: PositiveInt = 128
    """Pixels; frames are resized (antialiased) and centre-cropped."""
    width: PositiveInt = 128
    """Pixels."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Further picture sizes, [height, width] each: a video is cropped to the size whose aspect ratio is
    nearest its own. Each size has batches of its own."""
    short_frames: PositiveInt = 8
    """Frames per SHORT window."""
    short_stride: PositiveInt = 8
    """Frames from one SHORT window to the next."""
    long_frames: PositiveInt = 32
    """Frames per LONG window."""
    long_stride: PositiveInt = 32
    """Frames from one LONG window to the next."""
    long_lengths: tuple[int, ...] = ()
    """Frames of shorter LONG windows: a shot (a whole video, without data.curation.cuts) that is shorter than
    long_frames is cut into windows of the longest of these that it holds, overlapping in the same proportion.
    A shot has windows of one length. Each length has batches of its own."""
    holdout: Share = 0.0
    """Share of the windows of each corpus kept out of training (a window is held out by the hash of its
    id)."""
    block_bytes: PositiveInt = 8 << 20
    """Small videos share a task up to this many bytes, or fewer in a small corpus."""
    encode_batch: int = 1
    """Windows that a neural autoencoder encodes together."""
    min_actors: int = 1
    """Actors that hold a neural autoencoder, at first."""
    max_actors: int = 2
    """Most such actors; Ray adds them while work is waiting."""
    max_reject_share: Share = 0.5
    """Ingest fails when more than this share of the videos is rejected."""
    limits: LimitsConfig = LimitsConfig()
    """What a video may ask of the machine."""
    curation: CurationConfig = CurationConfig()
    """Which videos and windows are worth training on."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every picture size, the main one first."""
        return ((self.height, self.width), *self.shapes)

    @property
    def has_buckets(self) -> bool:
        """Whether windows may have several shapes."""
        return bool(self.shapes or self.long_lengths)

    def cuts_of(self, corpus: str) -> tuple[tuple[int, int], ...]:
        """Length and stride of the windows of `short` or `long`, the longest first."""
        if corpus == "short":
            return ((self.short_frames, self.short_stride),)
        shorter = sorted(self.long_lengths, reverse=True)
        scaled = ((length, max(1, self.long_stride * length // self.long_frames)) for length in shorter)
        return ((self.long_frames, self.long_stride), *scaled)
