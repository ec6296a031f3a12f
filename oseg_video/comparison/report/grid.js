// The clips: a row for every prompt and seed, a cell for every method. Only rows in sight have videos (or images).

const MOST_VIDEOS = 64; // Chromium allows 75 in a page
const SMALL = 128; // pixels; smaller clips are shown with sharp pixels

class Grid {
  constructor(place, data, player) {
    this.data = data;
    this.player = player;
    this.methods = new Set(data.methods);
    this.heard = null; // the cell whose sound is on
    this.rows = data.rows.map((row) => this.makeRow(row));
    this.inSight = new Set();
    place.append(...this.rows.map((row) => row.node));
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const row = this.rows[Number(target.dataset.row)];
        if (isIntersecting) this.inSight.add(row);
        else this.inSight.delete(row);
      }
      this.load();
    }, { rootMargin: "200px 0px" });
    for (const row of this.rows) observer.observe(row.node);
  }

  makeRow(row) {
    const cells = new Map(this.data.methods.map((method, place) => [method, this.makeCell(row, method, place)]));
    const about = [row.image && row.image !== row.text ? row.image : null, row.seed === null ? null : `seed ${row.seed}`];
    const node = element("section", { class: "row", "data-row": this.data.rows.indexOf(row) },
      element("h2", {}, row.text, element("small", {}, about.filter((part) => part).join(" · "))),
      element("div", { class: "cells" }, ...[...cells.values()].map((cell) => cell.node)));
    return { node, cells, words: `${row.text} ${about.join(" ")}`.toLowerCase() };
  }

  makeCell(row, method, place) {
    const clip = row.clips[method];
    const screen = element("div", { class: "screen" });
    const node = element("figure", { class: "cell", "data-method": method }, screen,
      element("figcaption", {}, element("span", { class: "method" }, method)));
    node.style.order = place;
    const cell = { node, screen, clip, method, place, video: null };
    if (clip?.src) {
      screen.style.aspectRatio = `${clip.width} / ${clip.height}`;
      if (clip.width <= SMALL) screen.classList.add("small");
      node.append(this.makeDetails(row, method, clip));
      if (clip.sound) node.querySelector("figcaption").append(this.makeSound(cell));
    } else {
      screen.classList.add("missing");
      screen.append(clip ? `failed: ${clip.failed}` : "no clip");
    }
    return cell;
  }

  makeSound(cell) {
    cell.sound = element("button", { class: "sound", type: "button", "aria-pressed": "false",
      title: "hear this clip, and no other" }, "sound");
    cell.sound.addEventListener("click", () => this.hear(this.heard === cell ? null : cell));
    return cell.sound;
  }

  // One clip is heard at a time; at first none is.
  hear(heard) {
    this.heard = heard;
    for (const row of this.rows) {
      for (const cell of row.cells.values()) {
        if (cell.video && !cell.clip.still) cell.video.muted = cell !== heard;
        cell.sound?.setAttribute("aria-pressed", String(cell === heard));
      }
    }
  }

  // Settings and metric values of a clip, filled when first opened: a page may hold hundreds.
  makeDetails(row, method, clip) {
    const details = element("details", {}, element("summary", {}, "settings"));
    details.addEventListener("toggle", () => {
      if (details.childElementCount > 1) return;
      const results = this.data.results?.results[method] ?? [];
      const values = results.filter((result) => clip.name in result.per_clip)
        .map((result) => [result.name, short(result.per_clip[clip.name])]);
      const about = { file: clip.name, seed: row.seed, frames: clip.frames, fps: clip.fps,
        size: `${clip.height} × ${clip.width}`, ...Object.fromEntries(values) };
      const lines = Object.entries({ ...about, ...this.data.settings[clip.settings] });
      details.append(element("dl", {}, ...lines.filter(([, value]) => value !== null).flatMap(([name, value]) =>
        [element("dt", {}, name), element("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value))])));
    });
    return details;
  }

  // Videos for the cells in sight, and for no others.
  load() {
    const wanted = [...this.inSight].filter((row) => !row.node.hidden)
      .sort((a, b) => Number(a.node.dataset.row) - Number(b.node.dataset.row))
      .flatMap((row) => [...row.cells.values()])
      .filter((cell) => cell.clip?.src && !cell.node.hidden).slice(0, MOST_VIDEOS);
    const keep = new Set(wanted);
    for (const row of this.rows) {
      for (const cell of row.cells.values()) if (cell.video && !keep.has(cell)) this.unload(cell);
    }
    for (const cell of wanted) if (!cell.video) this.loadCell(cell);
  }

  loadCell(cell) {
    const still = cell.clip.still;
    const video = still ? element("img", { alt: cell.method, draggable: "false" })
      : element("video", { muted: "", playsinline: "", preload: "auto", "aria-label": cell.method });
    video.muted = cell !== this.heard; // the attribute alone does not mute what a script adds
    video.addEventListener("error", () => {
      if (cell.video === video) cell.screen.dataset.error = `cannot ${still ? "show" : "play"} ${cell.clip.name}`;
    });
    if (!still) this.player.add(video, cell.clip);
    video.src = cell.clip.src;
    cell.video = video;
    delete cell.screen.dataset.error;
    cell.screen.prepend(video);
  }

  unload(cell) {
    const video = cell.video;
    cell.video = null;
    video.remove();
    video.removeAttribute("src");
    if (cell.clip.still) return;
    this.player.remove(video);
    video.load(); // lets go of the decoder
  }

  filter(text, methods) {
    this.methods = methods;
    const words = text.toLowerCase().split(/\s+/).filter((word) => word);
    let shown = 0;
    for (const row of this.rows) {
      row.node.hidden = !methods.size || !words.every((word) => row.words.includes(word));
      shown += row.node.hidden ? 0 : 1;
      for (const cell of row.cells.values()) cell.node.hidden = !methods.has(cell.method);
    }
    this.load();
    return shown;
  }

  // Two methods change places, in one row or in all; undone without arguments.
  swap(first, second, only) {
    for (const row of this.rows) {
      const pair = first !== undefined && (!only || row === only) ? [row.cells.get(first), row.cells.get(second)] : [];
      for (const cell of row.cells.values()) {
        const other = cell === pair[0] ? pair[1] : cell === pair[1] ? pair[0] : cell;
        cell.node.style.order = other.place;
      }
    }
  }

  cellOf(node) {
    const row = this.rows[Number(node.closest(".row").dataset.row)];
    return { row, cell: row.cells.get(node.closest(".cell").dataset.method) };
  }
}
