"""The text encoder and the transformer, trained together by flow matching.

Tensor letters: B clips, C latent channels, F H W latent frames, rows and columns, S video tokens, L text
tokens, N heads, D head dim.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel, T5Tokenizer

from oseg_video.embedded import MODEL_PATH, dataset, two_shapes
from oseg_video.embedded.two_shapes import SHAPE_VOCABULARIES, TwoShapes
from training.latents import KEY_FRAMES, SCALE, pooled_key_frames
from training.loop import LoopConfig, autocast, fit

logger = logging.getLogger(__name__)

TRAINING_SEED = 1
TEXT_DIM = 64
CAPTION_DROPOUT = 0.1
"""Share of clips trained with the empty prompt, which is the unconditional branch of guidance."""
BINDING_WEIGHT = 0.1
"""Weight of the loss that asks the text encoder which words are about the same shape."""
TIMESTEP_SHIFT = 2.0
"""Above 1 the sampled noise levels move towards noise, where the layout of the clip is decided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a transformer learns to draw, its size, and how long it learns."""

    data: ModuleType
    """A data set with the functions of `oseg_video.embedded.dataset`."""
    data_seed: int = TRAINING_SEED
    text_tokens: int
    """Padded caption length in training; the longest caption takes no more."""
    patch_size: int
    """Latent positions per side of a token: of latents of 4 x 8 x 8, 1 makes 256 tokens, 2 makes 64."""
    blocks: int
    kept_blocks: tuple[int, ...] | None
    """Blocks of the one-shape model that the blocks start from; None starts from nothing."""
    batch: int
    loop: LoopConfig
    binds: bool = False
    """Whether the text encoder also learns which words belong together, see `binding_loss`."""


ONE_SHAPE = Task(
    data=dataset,
    text_tokens=20,
    patch_size=2,
    blocks=6,
    kept_blocks=None,
    batch=32,
    loop=LoopConfig(steps=5700, learning_rate=1.5e-3, warmup_steps=300, ema_decay=0.999, seed=3),
)
TWO_SHAPES = Task(
    data=two_shapes,
    text_tokens=32,
    patch_size=1,
    blocks=5,
    kept_blocks=(0, 1, 2, 4, 5),
    batch=16,
    binds=True,
    # The rate stays until a run is given a number of steps: it can be lengthened at any time.
    loop=LoopConfig(
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=200,
        decay_steps=1500,
        muon=("transformer.transformer_blocks",),
        ema_decay=0.998,
        seed=3,
        save_every=300,
        keep_every=500,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Latents float [B, C, F, H, W] of unit scale, and captions as token ids and mask [B, L].

    Of captions that bind: `words` [n, 2], row and column of tokens that stand for a shape, and `bound`
    [n, 3], the colour, kind and motion of that shape as indices.
    """

    latents: Tensor
    token_ids: Tensor
    token_mask: Tensor
    words: Tensor
    bound: Tensor


class TextToVideo(nn.Module):
    """Text encoder and transformer as one module, so that one optimiser and one checkpoint hold both."""

    def __init__(self, vocabulary_size: int, task: Task) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(vocabulary_size)
        self.transformer = new_transformer(task)
        self.binding = nn.Linear(TEXT_DIM, sum(map(len, SHAPE_VOCABULARIES.values()))) if task.binds else None
        """Reads colour, kind and motion off a token; left behind when the training is over."""

    def forward(
        self, noisy_BCFHW: Tensor, timestep_B: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Predicted velocity, clean latents minus noise, and the embeddings of the tokens [B, L, 64].

        Timestep 0 is noise, 1000 is clean.
        """
        embeddings = self.text_encoder(token_ids, attention_mask=token_mask).last_hidden_state
        velocity = self.transformer(noisy_BCFHW, embeddings, timestep_B, token_mask, return_dict=False)[0]
        return velocity, embeddings


class BatchedMochiAttention:
    """Mochi's joint attention for a whole batch at once, with a mask over the text.

    The stock processor loops over the batch, and the backward of its fused attention is slow on a CPU.
    Rows of padded text tokens differ from the stock ones, but nothing reads them.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]
        heads = (attn.heads, -1)
        query = _rotate(attn.norm_q(attn.to_q(hidden_states).unflatten(2, heads)), *image_rotary_emb)
        key = _rotate(attn.norm_k(attn.to_k(hidden_states).unflatten(2, heads)), *image_rotary_emb)
        value = attn.to_v(hidden_states).unflatten(2, heads)
        text_query = attn.norm_added_q(attn.add_q_proj(encoder_hidden_states).unflatten(2, heads))
        text_key = attn.norm_added_k(attn.add_k_proj(encoder_hidden_states).unflatten(2, heads))
        text_value = attn.add_v_proj(encoder_hidden_states).unflatten(2, heads)

        query_BNSD = torch.cat([query, text_query], dim=1).transpose(1, 2)
        key_BNSD = torch.cat([key, text_key], dim=1).transpose(1, 2)
        value_BNSD = torch.cat([value, text_value], dim=1).transpose(1, 2)
        # Queries and keys are normalised, so no exponential overflows; padding has no value and no weight,
        # and a column of ones in the values sums the weights: a pass over the scores less than a softmax.
        keep = torch.cat([attention_mask.new_ones(len(query), tokens), attention_mask], dim=1)
        value_BNSD = torch.cat([value_BNSD, torch.ones_like(value_BNSD[..., :1])], dim=-1)
        value_BNSD = value_BNSD * keep[:, None, :, None]
        weights = (query_BNSD * query_BNSD.shape[-1] ** -0.5 @ key_BNSD.transpose(2, 3)).exp()
        mixed = weights.to(value_BNSD.dtype) @ value_BNSD
        mixed = (mixed[..., :-1] / mixed[..., -1:]).transpose(1, 2).flatten(2)
        video, text = mixed[:, :tokens], mixed[:, tokens:]
        video = attn.to_out[0](video)
        return video, text if attn.context_pre_only else attn.to_add_out(text)


def new_text_encoder(vocabulary_size: int) -> T5EncoderModel:
    """A two-layer T5 encoder."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def new_transformer(task: Task) -> MochiTransformer3DModel:
    """Mochi's transformer for latents of 4 x 8 x 8, each block an identity at the start."""
    transformer = MochiTransformer3DModel(
        patch_size=task.patch_size,
        num_attention_heads=6,
        attention_head_dim=32,
        num_layers=task.blocks,
        pooled_projection_dim=64,
        in_channels=12,
        text_embed_dim=TEXT_DIM,
        time_embed_dim=128,
    )
    for block in transformer.transformer_blocks:
        context_norm = block.norm1_context
        _zero(block.norm1.linear)
        _zero(context_norm.linear_1 if block.context_pre_only else context_norm.linear)
    _zero(transformer.norm_out.linear)
    _zero(transformer.proj_out)
    # diffusers starts the rotary frequencies at 0, no position at all. Positions are frames in time and, for
    # 4 x 4 patches, multiples of 48 in space (MochiRoPE scales every grid to an area of 192 x 192).
    spacing = 192 * task.patch_size / 8
    with torch.no_grad():
        transformer.pos_frequencies.normal_()
        transformer.pos_frequencies[0] *= 0.8
        transformer.pos_frequencies[1:] *= 0.8 / spacing
    return transformer


@torch.no_grad()
def start_from_one_shape(model: TextToVideo, task: Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy what the shipped model knows about words, colours, outlines and motion.

    Rotary positions span the frame whatever the patch, so attention keeps its meaning; a token that held
    2 x 2 latent positions and now holds one starts as if all four were equal.
    """
    assert task.kept_blocks is not None
    source = MochiTransformer3DModel.from_pretrained(MODEL_PATH / "transformer", torch_dtype=torch.float32)
    source.transformer_blocks = nn.ModuleList(source.transformer_blocks[block] for block in task.kept_blocks)
    state = source.state_dict()
    state["pos_frequencies"] = state["pos_frequencies"].clone()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].sum(dim=(2, 3), keepdim=True)
    for name in ("proj_out.weight", "proj_out.bias"):
        state[name] = state[name].unflatten(0, (-1, source.config.in_channels)).mean(dim=0)
    model.transformer.load_state_dict(state)

    words = T5EncoderModel.from_pretrained(MODEL_PATH / "text_encoder", dtype=torch.float32).state_dict()
    known = T5Tokenizer.from_pretrained(MODEL_PATH / "tokenizer").get_vocab()
    for name, value in model.text_encoder.state_dict().items():
        if value.shape == words[name].shape:
            value.copy_(words[name])
        else:
            for piece, row in tokenizer.get_vocab().items():
                if piece in known:
                    value[row] = words[name][known[piece]]


def train_transformer(
    task: Task, tokenizer: PreTrainedTokenizerBase, run_dir: Path, device: torch.device
) -> TextToVideo:
    """Train on clips drawn on the fly, no clip twice."""
    torch.manual_seed(task.data_seed)
    model = TextToVideo(len(tokenizer), task)
    if task.kept_blocks is not None:
        start_from_one_shape(model, task, tokenizer)
    model.to(device)
    for block in model.transformer.transformer_blocks:
        block.attn1.processor = BatchedMochiAttention()
        block.compile()

    def compute_losses(step: int) -> dict[str, Tensor]:
        return flow_matching_losses(model, draw_batch(task, tokenizer, step, device))

    return fit(model, compute_losses, task.loop, run_dir / "transformer.pt")


def draw_batch(task: Task, tokenizer: PreTrainedTokenizerBase, step: int, device: torch.device) -> Batch:
    """New clips with a caption of random phrasing; a share of the captions is dropped."""
    indices = range(task.batch * step, task.batch * (step + 1))
    clips_BFCHW, attributes = task.data.sample_clips(task.data_seed, indices, frames=KEY_FRAMES)
    dropped = (torch.rand(task.batch) < CAPTION_DROPOUT).tolist()
    captions = [
        "" if drop else task.data.sample_caption(task.data_seed, index, words)
        for index, words, drop in zip(indices, attributes, dropped, strict=True)
    ]
    tokens = tokenizer(captions, padding="max_length", max_length=task.text_tokens, return_tensors="pt")
    words = [
        (row, tokens.char_to_token(row, captions[row].lower().index(word)), *indices)
        for row, clip in enumerate(attributes if task.binds else ())
        if captions[row]
        for word, indices in _bound_words(clip)
    ]
    words_n5 = torch.tensor(words).view(-1, 5).to(device)
    return Batch(
        latents=SCALE * pooled_key_frames(clips_BFCHW.to(device)),
        token_ids=tokens.input_ids.to(device),
        token_mask=tokens.attention_mask.bool().to(device),
        words=words_n5[:, :2],
        bound=words_n5[:, 2:],
    )


def _bound_words(clip: TwoShapes) -> list[tuple[str, tuple[int, ...]]]:
    """The colours and kinds of both shapes, each with all that is said of its shape."""
    found = []
    for shape in clip.shapes:
        indices = tuple(words.index(getattr(shape, name)) for name, words in SHAPE_VOCABULARIES.items())
        found += [(shape.colour, indices), (shape.shape, indices)]
    return found


def binding_loss(model: TextToVideo, embeddings_BLD: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of colour, kind and motion, read off the tokens of a shape's colour and kind.

    Without it the captions' motions were drawn after 13,500 steps, but by either shape: what an error costs
    was 0.1 with other motions and 0.001 with the two exchanged (velocity error 0.1 in all).
    """
    assert model.binding is not None
    logits = model.binding(embeddings_BLD[batch.words[:, 0], batch.words[:, 1]].float())
    parts = logits.split([len(words) for words in SHAPE_VOCABULARIES.values()], dim=1)
    return sum(nn.functional.cross_entropy(a, b) for a, b in zip(parts, batch.bound.T, strict=True))


def flow_matching_losses(model: TextToVideo, batch: Batch) -> dict[str, Tensor]:
    """Squared error of the velocity at shifted uniform noise levels, and its parts at low and high noise."""
    uniform = torch.rand(len(batch.latents))
    noise_level = TIMESTEP_SHIFT * uniform / (1 + (TIMESTEP_SHIFT - 1) * uniform)
    noise_level = noise_level.to(batch.latents.device)
    noise = torch.randn_like(batch.latents)
    level = noise_level[:, None, None, None, None]
    noisy = (1 - level) * batch.latents + level * noise
    with autocast(noisy.device):
        velocity, embeddings = model(noisy, 1000 * (1 - noise_level), batch.token_ids, batch.token_mask)
    error_B = (velocity.float() - (batch.latents - noise)).square().mean(dim=(1, 2, 3, 4))
    high = noise_level > 0.7
    parts = {"high_noise": error_B[high].mean().nan_to_num(), "low_noise": error_B[~high].mean().nan_to_num()}
    if model.binding is None:
        return {"loss": error_B.mean(), **parts}
    binding = binding_loss(model, embeddings, batch)
    return {"loss": error_B.mean() + BINDING_WEIGHT * binding, **parts, "binding": binding}


def _zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def _rotate(x_BSND: Tensor, cos_SND: Tensor, sin_SND: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs of channels, in float32."""
    even, odd = x_BSND[..., 0::2].float(), x_BSND[..., 1::2].float()
    rotated = torch.stack([even * cos_SND - odd * sin_SND, even * sin_SND + odd * cos_SND], dim=-1)
    return rotated.flatten(-2).to(x_BSND.dtype)
