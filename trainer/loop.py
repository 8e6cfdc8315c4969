"""The whole training loop, to be read from top to bottom. Equations are the paper's."""

import json
import logging
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from schemas.commandline import progress
from schemas.device import pick_device
from schemas.errors import UserError
from schemas.manifest import SCALE, open_manifest
from schemas.weights import locate
from trainer import checkpoint, losses, pictures
from trainer.clip import Encoders, load_encoders
from trainer.config import TrainConfig
from trainer.data import COLUMNS, Batch, Patches
from trainer.network import load_sr
from trainer.rrdb import save_rrdb
from trainer.stop import asked_to_stop
from trainer.vgg import VGG, load_vgg_named, vgg_term

log = logging.getLogger(__name__)

SAMPLES = 4  # patches on a sample sheet


def open_patches(config: TrainConfig) -> Patches:
    """The manifest, checked for what training needs. Raises ManifestError or UserError."""
    manifest = open_manifest(config.manifest, COLUMNS)
    patches = Patches(manifest, config.seed, config.degrade, config.pairing)
    if len(patches) < config.batch_size:
        raise UserError(
            f"{config.manifest}: {len(patches)} lr patches are fewer than a batch of"
            f" {config.batch_size}; take --batch-size {max(len(patches), 2)} or more photographs"
        )
    return patches


def train(config: TrainConfig) -> Path:
    """Train the SR network (and the encoders) as `config` says; carries on where a run stopped.

    Returns the path of the final weights. Raises UserError for what the user can mend.
    """
    device = pick_device(config.device)
    patches = open_patches(config)
    encoders = load_encoders(config.clip_name, device)
    sr_network = load_sr(config.sr_name).to(device)
    vgg = load_vgg_named(config.vgg_name, config.vgg_layers).to(device)
    weights = losses.LossWeights(config.weight_content, config.weight_quality, config.weight_vgg)

    encoder_parameters = [p for p in encoders.parameters() if p.requires_grad]
    if config.freeze_encoders:  # appendix E.1
        encoders.requires_grad_(False)
        encoder_parameters = []
    sr_parameters = list(sr_network.parameters())
    optimizer = torch.optim.Adam([*sr_parameters, *encoder_parameters], lr=config.lr)

    folder = config.folder
    identities = {
        "sr_init": locate(config.sr_name, "sr").identity,
        "clip": locate(config.clip_name, "clip").identity,
        "vgg": locate(config.vgg_name, "vgg").identity,
    }
    checkpoint.claim_folder(config, patches.manifest.identity, identities)
    done = 0
    if state := checkpoint.load(folder):
        done = state["step"]
        sr_network.load_state_dict(state["sr"])
        encoders.load_state_dict(state["encoders"])
        optimizer.load_state_dict(state["optimizer"])
        log.info("carrying on after step %d", done)
    checkpoint.trim_stats(folder / "stats.jsonl", done)

    autocast = torch.autocast(
        device.type, torch.bfloat16, enabled=config.precision == "bfloat16", cache_enabled=False
    )
    fixed = patches.batch(0, max(SAMPLES, 2)).lr[:SAMPLES].to(device)  # the same at every interval

    def save_checkpoint(step: int) -> None:
        checkpoint.save(
            folder,
            step,
            sr=sr_network.state_dict(),
            encoders=encoders.state_dict(),
            optimizer=optimizer.state_dict(),
        )

    def save_samples(step: int) -> None:
        with torch.no_grad(), autocast:
            sheet = folder / "samples" / f"step{step:07}.png"
            pictures.compare(sheet, fixed, sr_network(fixed))

    if done == 0:
        save_samples(0)
    batches = patches.batches(done, config.steps, config.batch_size, config.workers)
    with (
        SummaryWriter(folder, purge_step=done + 1) as board,
        open(folder / "stats.jsonl", "a") as stats,
        progress(config.steps, "steps", "step", initial=done) as bar,
        asked_to_stop() as stop,
    ):
        waited, since, logged = 0.0, time.perf_counter(), done
        for step in range(done + 1, config.steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            lr, hr = batch.lr.to(device), batch.hr.to(device)

            sr, terms = compute_terms(batch, lr, hr, sr_network, encoders, vgg, config, autocast)
            _check_finite(terms, step, batch.lr_rows)
            optimizer.zero_grad()
            total = backward(terms, weights, sr_parameters, encoder_parameters)
            optimizer.step()

            bar.update()
            finished, stopping = step == config.steps, stop.asked
            if step % config.log_every == 0 or finished:
                elapsed = time.perf_counter() - since
                record = {name: term.item() for name, term in terms.items()}
                record |= {
                    "total": total.item(),
                    "gradient_norm_sr": _norm(sr_parameters),
                    "gradient_norm_encoders": _norm(encoder_parameters),
                    "colour_shift": pictures.colour_shift(sr, lr),
                    "seconds_per_step": elapsed / (step - logged),
                    "waiting_for_data": waited / elapsed,
                }
                stats.write(json.dumps({"step": step} | record) + "\n")
                stats.flush()
                for name, value in record.items():
                    board.add_scalar(name, value, step)
                bar.set_postfix(total=f"{record['total']:.4f}")
                waited, since, logged = 0.0, time.perf_counter(), step
            if step % config.sample_every == 0 or finished:
                save_samples(step)
            if step % config.checkpoint_every == 0 or finished or stopping:
                save_checkpoint(step)
            if stopping and not finished:
                raise KeyboardInterrupt
    return save_rrdb(sr_network, folder)[0]


def compute_terms(
    batch: Batch,
    lr: Tensor,
    hr: Tensor,
    sr_network: nn.Module,
    encoders: Encoders,
    vgg: VGG,
    config: TrainConfig,
    autocast: torch.autocast,
) -> tuple[Tensor, dict[str, Tensor]]:
    """I_SR and the five terms of the loss, each a scalar, float32 under any autocast.

    lr, hr: the batch's pictures on the networks' device.
    """
    with autocast:
        sr = sr_network(lr)
        f_lr, f_hr, f_sr = (encoders.images(pictures) for pictures in (lr, hr, sr))
        c_lr, c_hr = encoders.texts(batch.lr_captions), encoders.texts(batch.hr_captions)
        q_minus, q_plus = encoders.texts(config.bad), encoders.texts(config.good)
        return sr, {
            "content_encoders": losses.content_encoders(f_lr, f_hr, c_lr, c_hr),  # (1)
            "content_sr": losses.content_sr(f_sr, c_lr),  # (2)
            "quality_encoders": losses.quality_encoders(f_lr, f_hr, q_minus, q_plus),  # (3)
            "quality_sr": losses.quality_sr(f_sr, q_minus, q_plus),  # (4)
            "vgg": vgg_term(vgg, sr, lr, config.vgg_distance),  # section 3.5
        }


def backward(
    terms: dict[str, Tensor],
    weights: losses.LossWeights,
    sr_parameters: list[nn.Parameter],
    encoder_parameters: list[nn.Parameter],
) -> Tensor:
    """Gradients of equation (5), each sum to its own network; returns the total, detached.

    The SR terms pass through the encoders on their way to the SR network and must not move them:
    `inputs` names where gradients may arrive, and nothing is computed for the rest.
    """
    encoder_loss = (
        weights.content * terms["content_encoders"] + weights.quality * terms["quality_encoders"]
    )
    sr_loss = (
        weights.content * terms["content_sr"]
        + weights.quality * terms["quality_sr"]
        + weights.vgg * terms["vgg"]
    )
    if encoder_parameters:
        encoder_loss.backward(inputs=encoder_parameters)
    sr_loss.backward(inputs=sr_parameters)
    content = terms["content_encoders"] + terms["content_sr"]
    quality = terms["quality_encoders"] + terms["quality_sr"]
    return weights.total(content, quality, terms["vgg"]).detach()


def _check_finite(terms: dict[str, Tensor], step: int, rows: list[int]) -> None:
    """Stop before a broken number reaches the weights; the last checkpoint stays as it was."""
    finite = torch.isfinite(torch.stack([term.detach() for term in terms.values()])).tolist()
    broken = [name for name, fine in zip(terms, finite, strict=True) if not fine]
    if broken:
        raise UserError(
            f"step {step}: the loss {', '.join(broken)} is not finite (manifest rows of the lr"
            f" patches: {rows}); the last checkpoint is kept: lower --lr or look at these patches"
        )


def _norm(parameters: list[nn.Parameter]) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0


def describe(config: TrainConfig) -> str:
    """What a run would do and what it needs, for --dry-run. Loads no network."""
    patches = open_patches(config)
    needs = [
        locate(config.sr_name, "sr"),
        locate(config.clip_name, "clip"),
        locate(config.vgg_name, "vgg"),
    ]
    epochs = config.steps * config.batch_size / len(patches)
    return "\n".join(
        [
            f"manifest: {config.manifest}, {len(patches)} lr and"
            f" {len(patches.is_lr) - len(patches)} hr patches",
            f"run:      {config.steps} steps of {config.batch_size}, {epochs:.1f} epochs,"
            f" x{SCALE} on {pick_device(config.device)}, {config.precision}",
            f"weights:  {', '.join(found.identity for found in needs)}",
            f"folder:   {config.folder}",
        ]
    )
