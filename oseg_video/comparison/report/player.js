// One clock for all videos. Every video plays by itself, so that its frames are decoded in order; the clock
// starts them together, nudges their speed while they drift by less than a few frames, and else starts anew.

const RESYNC_FRAMES = 3; // drift beyond which all videos start together again
const RESYNC_PAUSE = 1000; // milliseconds between two such starts
const WAIT = 2000; // milliseconds that a start waits for slow videos
const NUDGE = 0.15; // largest change of speed, as a share

class Player {
  constructor(clips) {
    const rates = clips.map((clip) => clip.fps || 1);
    this.fps = rates.length ? Math.max(...rates) : 1; // of the clock: the finest frames
    this.duration = clips.length ? Math.max(...clips.map((clip) => clip.frames / (clip.fps || 1))) : 1;
    this.frames = Math.max(1, Math.round(this.duration * this.fps));
    this.videos = new Map(); // video -> its clip
    this.time = 0.5 / this.fps; // seconds; at rest the middle of a frame, which no rounding leaves
    this.speed = 1;
    this.playing = false;
    this.onchange = () => {};
    this.starts = 0; // so that a start that was overtaken by another gives up
    this.running = false; // the clock, which stands while videos get ready
    this.lastStart = 0;
    this.tick = this.tick.bind(this);
    requestAnimationFrame(this.tick);
  }

  get frame() {
    return Math.min(this.frames - 1, Math.floor(this.time * this.fps));
  }

  add(video, clip) {
    this.videos.set(video, clip);
    video.addEventListener("loadeddata", () => {
      if (!this.videos.has(video)) return;
      video.currentTime = this.target(clip);
      if (this.running) this.begin(video);
    }, { once: true });
  }

  remove(video) {
    this.videos.delete(video);
    video.pause();
  }

  // Where a clip is when the clock is at `this.time`: a shorter one stays at its last frame.
  target(clip) {
    const fps = clip.fps || 1;
    return Math.min(this.time, (clip.frames - 0.5) / fps);
  }

  play() {
    this.playing = true;
    this.start();
  }

  pause() {
    this.playing = this.running = false;
    this.starts += 1;
    this.seek(this.frame);
  }

  // Show a frame, counted from 0.
  seek(frame) {
    const whole = ((frame % this.frames) + this.frames) % this.frames;
    this.time = (whole + 0.5) / this.fps;
    if (this.playing) {
      this.start();
    } else {
      this.show();
    }
    this.onchange();
  }

  setSpeed(speed) {
    this.speed = speed;
    if (this.playing) this.start();
  }

  show() {
    for (const [video, clip] of this.videos) {
      video.pause();
      if (video.readyState > 0) video.currentTime = this.target(clip);
    }
  }

  async start() {
    const mine = ++this.starts;
    this.running = false;
    this.lastStart = performance.now();
    this.show();
    this.onchange();
    const ready = [...this.videos.keys()].filter((video) => video.readyState > 0).map(settled);
    await Promise.race([Promise.all(ready), new Promise((resolve) => setTimeout(resolve, WAIT))]);
    if (mine !== this.starts) return;
    this.running = true;
    this.before = performance.now();
    for (const video of this.videos.keys()) this.begin(video);
  }

  begin(video) {
    video.playbackRate = this.speed;
    video.play().catch(() => {}); // it was removed or paused meanwhile
  }

  tick(now) {
    requestAnimationFrame(this.tick);
    if (!this.running) return;
    const shown = this.frame;
    this.time += Math.max(0, now - this.before) / 1000 * this.speed;
    this.before = Math.max(now, this.before);
    if (this.time >= this.duration) {
      this.time = 0.5 / this.fps;
      this.start();
      return;
    }
    for (const [video, clip] of this.videos) this.steer(video, clip, now);
    if (this.frame !== shown) this.onchange();
  }

  steer(video, clip, now) {
    if (video.readyState < 2 || video.seeking || video.ended) return;
    const drift = video.currentTime - this.target(clip);
    const frame = 1 / (clip.fps || 1);
    if (Math.abs(drift) > RESYNC_FRAMES * frame && now - this.lastStart > RESYNC_PAUSE) {
      this.start();
    } else {
      const nudge = Math.abs(drift) < frame / 8 ? 0 : Math.max(-NUDGE, Math.min(NUDGE, -4 * drift));
      const rate = this.speed * (1 + nudge);
      if (Math.abs(video.playbackRate - rate) > 0.01 * this.speed) video.playbackRate = rate;
    }
  }
}

function settled(video) {
  if (!video.seeking && video.readyState >= 2) return Promise.resolve();
  return new Promise((resolve) => {
    for (const event of ["seeked", "error", "emptied"]) video.addEventListener(event, resolve, { once: true });
  });
}
