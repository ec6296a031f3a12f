// The difference view: over each clip its absolute difference to the first method's clip. Videos of file://
// pages may be drawn on a canvas, and blended there, but not read back; nothing here reads.

class Overlay {
  constructor(grid) {
    this.grid = grid;
    this.first = null; // method, or null where the view is off
    this.gain = 1;
    this.paint = this.paint.bind(this);
  }

  show(first) {
    const before = this.first;
    this.first = first;
    if (first === null) {
      for (const canvas of document.querySelectorAll("canvas.difference")) canvas.remove();
    } else if (before === null) {
      requestAnimationFrame(this.paint);
    }
  }

  paint() {
    if (this.first === null) return;
    requestAnimationFrame(this.paint);
    for (const row of this.grid.inSight) {
      const reference = row.cells.get(this.first).video;
      for (const cell of row.cells.values()) this.paintCell(cell, reference);
    }
  }

  paintCell(cell, reference) {
    let canvas = cell.screen.querySelector("canvas");
    const possible = reference && cell.video && reference !== cell.video;
    if (!possible) {
      canvas?.remove();
      return;
    }
    if (!drawable(reference) || !drawable(cell.video)) return;
    if (!canvas) {
      canvas = element("canvas", { class: "difference", width: cell.clip.width, height: cell.clip.height });
      cell.screen.append(canvas);
    }
    canvas.style.filter = `brightness(${this.gain})`;
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(reference, 0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "difference";
    context.drawImage(cell.video, 0, 0, canvas.width, canvas.height);
  }
}

const drawable = (node) => (node.tagName === "IMG" ? node.naturalWidth > 0 : node.readyState >= 2);
