// Puts the parts together and listens to the user.

const data = JSON.parse(byId("data").textContent);
const clips = data.rows.flatMap((row) => Object.values(row.clips)).filter((clip) => clip.src);
const videos = clips.filter((clip) => !clip.still);
const player = new Player(videos);
const grid = new Grid(byId("grid"), data, player);
const overlay = new Overlay(grid);
const slider = new Slider(grid);

byId("title").textContent = data.methods.join(", ");
const things = videos.length || !clips.length ? "clips" : "images";
byId("facts").textContent = `${clips.length} ${things} · ${data.rows.length} rows · ${data.methods.length} methods`;
document.title = `${data.methods.join(", ")}: ${clips.length} ${things}`;
if (data.results) new Metrics(byId("metrics"), data.results, data.methods);
byId("to-metrics").hidden = !data.results;

// Playback

player.onchange = () => {
  byId("scrub").value = player.frame;
  byId("frame").textContent = `${player.frame + 1}/${player.frames}`;
  byId("play").textContent = player.playing ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", player.playing ? "pause" : "play");
};

function step(frames) {
  if (player.playing) player.pause();
  player.seek(player.frame + frames);
}

const toggle = () => (player.playing ? player.pause() : player.play()) ?? player.onchange();

function changeSpeed(places) {
  const speed = byId("speed");
  speed.selectedIndex = Math.max(0, Math.min(speed.options.length - 1, speed.selectedIndex + places));
  player.setSpeed(Number(speed.value));
}

byId("transport").hidden = things === "images";
byId("scrub").max = player.frames - 1;
byId("play").addEventListener("click", toggle);
byId("back").addEventListener("click", () => step(-1));
byId("forward").addEventListener("click", () => step(1));
byId("speed").addEventListener("change", () => changeSpeed(0));
byId("scrub").addEventListener("input", () => {
  const frame = Number(byId("scrub").value); // pausing writes the present frame there
  if (player.playing) player.pause();
  player.seek(frame);
});
player.onchange();

// Filters and size

function filter() {
  const chosen = new Set([...byId("methods").querySelectorAll("input:checked")].map((box) => box.value));
  byId("nothing").hidden = grid.filter(byId("search").value, chosen) > 0;
}

for (const method of data.methods) {
  const box = element("input", { type: "checkbox", value: method, checked: "" });
  box.addEventListener("change", filter);
  byId("methods").append(element("label", {}, box, method));
}
byId("search").addEventListener("input", filter);

let sizeChosen = false;

function setSize(pixels) {
  document.documentElement.style.setProperty("--size", `${pixels}px`);
}

// As large as fits, all methods side by side where that leaves them visible.
function fitSize() {
  if (sizeChosen) return;
  const gap = 12;
  const width = byId("grid").clientWidth;
  const columns = Math.max(1, Math.min(data.methods.length, Math.floor((width + gap) / (150 + gap))));
  const size = Math.min(320, Math.floor((width + gap) / columns) - gap);
  byId("size").value = size;
  setSize(size);
}

byId("size").addEventListener("input", () => {
  sizeChosen = true;
  setSize(Number(byId("size").value));
});
addEventListener("resize", fitSize);
fitSize();

// Two methods: flip and difference

const [first, second] = [byId("first"), byId("second")];
for (const select of [first, second]) {
  select.append(...data.methods.map((method) => element("option", { value: method }, method)));
}
second.selectedIndex = data.methods.length - 1;
const single = data.methods.length < 2;
byId("pair").disabled = byId("differences").disabled = single;

function flipAll() {
  if (!single) grid.swap(first.value, second.value);
}

function flipAt(node) {
  const { row, cell } = grid.cellOf(node);
  const other = cell.method === first.value ? second.value : first.value;
  if (!row.cells.get(other).node.hidden) grid.swap(cell.method, other, row);
}

const unflip = () => grid.swap();

byId("flip").addEventListener("pointerdown", flipAll);
byId("grid").addEventListener("pointerdown", (event) => {
  const screen = event.target.closest(".screen");
  if (event.button === 0 && !single && screen && !screen.classList.contains("sliding")) flipAt(event.target);
});
byId("grid").addEventListener("contextmenu", (event) => {
  if (event.pointerType === "touch" && event.target.closest(".screen")) event.preventDefault();
});
for (const event of ["pointerup", "pointercancel", "blur"]) addEventListener(event, unflip);

function showDifference() {
  overlay.gain = Number(byId("gain").value);
  byId("times").textContent = byId("gain").value;
  overlay.show(byId("difference").checked ? first.value : null);
}

for (const id of ["difference", "gain", "first"]) byId(id).addEventListener("input", showDifference);

// Two methods: a slider between their images

byId("sliding").hidden = !clips.some((clip) => clip.still);

function cutAt(percent) {
  byId("cut").value = percent;
  slider.cut(percent);
}

function slide() {
  if (byId("slide").checked) slider.show(first.value, second.value);
  else slider.show();
}

for (const id of ["slide", "first", "second"]) byId(id).addEventListener("input", slide);
byId("cut").addEventListener("input", () => slider.cut(byId("cut").value));
byId("grid").addEventListener("pointermove", (event) => {
  const screen = event.target.closest(".sliding");
  if (screen) cutAt(slider.at(screen, event));
});

// Theme

const THEMES = ["light dark", "light", "dark"];
let theme = 0;

function nextTheme() {
  theme = (theme + 1) % THEMES.length;
  document.documentElement.style.colorScheme = THEMES[theme];
  byId("theme").textContent = ["Theme", "Light", "Dark"][theme];
}

byId("theme").addEventListener("click", nextTheme);

// Keys

const KEYS = {
  " ": toggle,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: () => step(-player.frame),
  End: () => step(player.frames - 1 - player.frame),
  "[": () => changeSpeed(-1),
  "]": () => changeSpeed(1),
  f: flipAll,
  d: () => byId("difference").click(),
  s: () => byId("sliding").hidden || byId("slide").click(),
  t: nextTheme,
};
const REPEATED = ["ArrowLeft", "ArrowRight"]; // while the key is held

addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  // What the focused element does with the key itself.
  const typing = event.target.matches("input[type=search], select");
  const moving = key.length > 1 && event.target.matches("input[type=range], .scroll");
  const pressing = key === " " && event.target.matches("button, input[type=checkbox], summary");
  if (typing || moving || pressing || event.ctrlKey || event.metaKey || event.altKey || !(key in KEYS)) return;
  event.preventDefault();
  if (!event.repeat || REPEATED.includes(key)) KEYS[key]();
});
addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() === "f") unflip();
});
