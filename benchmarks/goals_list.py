"""The reliability goals as data: one line a campaign, in the order in which a full run makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What is done to prove one goal, or a part of it."""

    number: str
    part: str  # tells the campaigns of one goal apart
    what: str  # was done
    target: str
    campaign: str  # module:function, called as function(count, first): tests/campaign.py says what it gives back
    unit: str  # of the count
    short: int  # counts of the two forms
    full: int
    slice: int  # cases between two words of progress

    @property
    def name(self) -> str:
        """As results and progress call it."""
        return f"{self.number} {self.part}".strip()


GOALS = (
    Goal("G6", "", "a checkpoint file is flipped, cut, grown, lost, swapped, linked or zeroed",
         "detected, and the older checkpoint restored", "tests.engine.campaigns:corruption_campaign",
         "corruptions", 200, 2000, 100),
    Goal("G7", "", "a shard is broken before or after it was indexed", "no sample lost or wrong without a word",
         "benchmarks.broken_shards:campaign", "shards", 150, 3000, 50),
    Goal("G8", "decoder", "a damaged image is decoded", "no crash, no error but a refusal, < 512 MB, < 1 s",
         "tests.data.image_fuzz:decoder_campaign", "images", 5000, 100_000, 2500),
    Goal("G8", "ledger", "damaged images are read from shards by the loader", "ledger as an oracle says",
         "tests.data.image_fuzz:ledger_campaign", "images", 400, 10_000, 200),
    Goal("G9", "", "three epochs of a random layout of shards", "every sample once an epoch",
         "tests.data.order_cases:once_campaign", "layouts", 200, 1000, 100),
    Goal("G10", "plan", "the world size, accumulation and workers change at random steps", "equal step digests",
         "tests.data.order_cases:plan_campaign", "schedules", 50, 100, 25),
    Goal("G10", "loaders", "the same through real loaders, a tenth of them with 1 to 5 worker processes",
         "equal step digests", "tests.data.order_cases:elastic_campaign", "schedules", 10, 100, 10),
    Goal("G11", "", "a position is looked up among 1e9 samples in 1e5 shards, cold", "< 0.5 s, < 200 MB",
         "tests.data.order_cases:position_campaign", "positions", 5, 50, 5),
    Goal("G14", "", "one setting of a shipped config is misnamed, mistyped, left out or out of range",
         "legal, or refused in a sentence with key and fix", "tests.bad_configs:bad_config_campaign",
         "configs", 300, 100_000, 500),
    Goal("G14", "command", "the same given to the real command", "exit code 78 before DeepSpeed is imported",
         "tests.bad_configs:command_campaign", "commands", 3, 36, 3),
    Goal("G12", "", "an operation of a save or a line is refused on one of two ranks: ENOSPC, EIO, EROFS, EDQUOT",
         "training goes on, published checkpoints whole, no line lost", "tests.engine.campaigns:storage_campaign",
         "faults", 53, 1000, 53),
    Goal("G15", "", "a loss is NaN or a gradient infinite on one of two ranks, at ZeRO 0 to 3 in fp32 and bf16",
         "none in weights, moments, average or checkpoint", "tests.engine.campaigns:poison_campaign",
         "injections", 16, 1000, 16),
    Goal("G13", "", "a run beside a W&B that is dead, mute, killed or answers errors",
         "final state, losses and ledger those without W&B", "tests.tracking.dead_wandb:wandb_campaign",
         "runs", 4, 24, 4),
    Goal("G3", "", "a real SLURM preempts, kills, requeues, times out, loses a node", "ends bit-identical",
         "benchmarks.slurm:scenario_campaign", "scenarios", 6, 13, 1000),
    Goal("G4", "", "a rank in training gets SIGUSR2", "checkpoint published < 2 s, all gone < 30 s",
         "benchmarks.slurm:signal_campaign", "signals", 5, 50, 10),
    Goal("G5", "", "a rank in training gets SIGKILL", "the other gone < 5 s",
         "benchmarks.slurm:death_campaign", "deaths", 5, 50, 10),
    Goal("G2", "kills", "a save, prune or restore on two ranks is killed at an operation: one rank, the other, both",
         "old or new checkpoint, bit for bit; none unloadable", "tests.engine.kill_points:kill_campaign",
         "kills", 8, 1000, 24),
    Goal("G2", "power loss", "the power goes in the midst of saves, prunes and a resume; a legal state of the disk",
         "last or next checkpoint, bit for bit, all its lines", "tests.engine.campaigns:power_loss_campaign",
         "states", 100, 5000, 250),
    Goal("G1", "plain", "a two-rank run is killed by SIGKILL at random", "final state, losses and ledger bit-identical",
         "tests.chaos:plain_campaign", "kills", 8, 200, 10_000),
    Goal("G1", "ZeRO-2", "the same at ZeRO stage 2", "final state, losses and ledger bit-identical",
         "tests.chaos:zero2_campaign", "kills", 3, 50, 10_000),
    Goal("G16", "payloads", "a shard, index, checkpoint, weights, config or name of a stranger goes through its door",
         "none executed, no crash, no error but a refusal", "tests.security.campaigns:payload_campaign",
         "payloads", 1000, 1000, 1000),
    Goal("G16", "pickles", "a mutated pickle or archive is read as weights",
         "none executed, no crash, no error but a refusal", "tests.security.campaigns:pickle_campaign",
         "pickles", 500, 10_000, 500),
    Goal("G18", "", "a ViT-B's checkpoint is written in the background while steps are made",
         "training stands still for less than 2 % of ten minutes", "benchmarks.checkpoint_stall:campaign",
         "checkpoints", 1, 5, 5),
    Goal("G17", "", "kills, damaged images, a disk that fills up and a mute W&B at once",
         "final state, losses and ledger as in the calm run", "tests.soak:soak_campaign", "minutes", 1, 120, 100_000),
)  # fmt: skip
