// Images of two methods in one place: the second's lies over the first's, cut at a line that follows the pointer.

class Slider {
  constructor(grid) {
    this.grid = grid;
  }

  // Without arguments: off.
  show(first, second) {
    for (const over of document.querySelectorAll(".over")) over.remove();
    for (const screen of document.querySelectorAll(".sliding")) screen.classList.remove("sliding");
    if (first === undefined || first === second) return;
    for (const row of this.grid.rows) {
      const [under, over] = [row.cells.get(first), row.cells.get(second)];
      if (!under.clip?.still || !over.clip?.still) continue;
      under.screen.classList.add("sliding");
      under.screen.append(element("img", { class: "over", src: over.clip.src, alt: second, loading: "lazy", draggable: "false" }));
    }
  }

  // The line, in percent of the width.
  cut(percent) {
    document.documentElement.style.setProperty("--cut", `${percent}%`);
  }

  // Percent at which a pointer stands in an image.
  at(screen, event) {
    const box = screen.getBoundingClientRect();
    return Math.max(0, Math.min(100, 100 * (event.clientX - box.left) / box.width));
  }
}
