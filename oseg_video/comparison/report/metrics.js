// The metric values: a table with 95 % intervals and differences, and a plot for each of them.

const ARROWS = { higher: " ↑", lower: " ↓" };
const PLOT = { width: 360, letters: 24, letter: 7, right: 14, line: 22, bottom: 22 };

const fitting = (method) => (method.length > PLOT.letters ? `${method.slice(0, PLOT.letters - 1)}…` : method);
const short = (value) => (value === null ? "–" : Number(value.toPrecision(4)).toString());

// Decimals that show two digits of the interval's width, as the command line's tables do.
function decimals(value, interval) {
  const width = interval ? interval[1] - interval[0] : Math.abs(value) / 100;
  return width > 0 ? Math.min(Math.max(1 - Math.floor(Math.log10(width)), 1), 6) : 4;
}

function shown(value, interval, signed = false) {
  if (value === null) return "–";
  const digits = decimals(value, interval);
  const one = (x) => (signed && x >= 0 ? "+" : "") + x.toFixed(digits).replace("-", "−");
  return one(value) + (interval ? ` [${interval.map(one).join(", ")}]` : "");
}

// "better", "worse" or "": only where the whole interval is on one side of 0.
function verdict(difference, better) {
  if (!better || !difference?.interval) return "";
  const [low, high] = difference.interval;
  if (low <= 0 && high >= 0) return "";
  return (low > 0) === (better === "higher") ? "better" : "worse";
}

class Metrics {
  constructor(place, evaluation, methods) {
    this.evaluation = evaluation;
    this.methods = methods.filter((method) => method in evaluation.results);
    this.names = Object.keys(evaluation.better);
    place.append(element("h2", {}, "Metrics"), this.table(),
      element("div", { class: "plots" }, ...this.names.map((name) => this.plot(name)).filter((plot) => plot)), this.notes());
  }

  result(method, name) {
    return this.evaluation.results[method].find((result) => result.name === name);
  }

  difference(method, name) {
    return this.evaluation.differences.find((one) => one.method === method && one.name === name);
  }

  title(name) {
    return name + (ARROWS[this.evaluation.better[name]] ?? "");
  }

  table() {
    const head = element("tr", {}, element("th", { scope: "col" }, "method"), element("th", { scope: "col" }, "clips"),
      ...this.names.map((name) => element("th", { scope: "col" }, this.title(name))));
    const lines = this.methods.map((method) => element("tr", { "data-method": method },
      element("th", { scope: "row" }, method), element("td", {}, String(this.evaluation.methods[method].clips)),
      ...this.names.map((name) => this.entry(method, name))));
    return element("div", { class: "scroll", tabindex: "0" },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines)));
  }

  entry(method, name) {
    const result = this.result(method, name);
    const difference = this.difference(method, name);
    const says = verdict(difference, this.evaluation.better[name]);
    const reported = this.evaluation.reported?.values[method]?.[name];
    return element("td", {}, result ? shown(result.value, result.interval) : "–",
      difference ? element("small", { class: says },
        shown(difference.value, difference.interval, true), element("br"),
        `to ${difference.baseline}${says && `, ${says}`}`) : null,
      reported === undefined ? null : element("small", { class: "reported" }, `reported ${reported}`));
  }

  plot(name) {
    const results = this.methods.map((method) => [method, this.result(method, name)])
      .filter(([, result]) => result && result.value !== null);
    if (!results.length) return null;
    const ends = results.flatMap(([, result]) => result.interval ?? [result.value]);
    let [low, high] = [Math.min(...ends), Math.max(...ends)];
    const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    [low, high] = [low - margin, high + margin];
    const left = 20 + PLOT.letter * Math.max(10, ...results.map(([method]) => fitting(method).length));
    const across = (value) => left + (value - low) / (high - low) * (PLOT.width - left - PLOT.right);
    const height = results.length * PLOT.line + PLOT.bottom;
    const marks = results.flatMap(([method, { value, interval }], index) => {
      const y = (index + 0.5) * PLOT.line;
      const line = interval ? [drawing("line", { x1: across(interval[0]), x2: across(interval[1]), y1: y, y2: y })] : [];
      const label = drawing("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, fitting(method));
      label.append(drawing("title", {}, method));
      return [label, ...line,
        drawing("circle", { cx: across(value), cy: y, r: 4 }, drawing("title", {}, `${method}: ${shown(value, interval)}`))];
    });
    const axis = height - PLOT.bottom;
    const ticks = [low + margin, high - margin].map((value, index) =>
      drawing("text", { x: across(value), y: axis + 16, "text-anchor": index ? "end" : "start", class: "tick" }, short(value)));
    return element("figure", { class: "plot" }, element("figcaption", {}, this.title(name)),
      drawing("svg", { viewBox: `0 0 ${PLOT.width} ${height}`, role: "img", "aria-label": `${name} of every method` },
        drawing("path", { class: "axis", d: `M${left} ${axis}H${PLOT.width - PLOT.right}` }), ...marks,
        ...(margin * 20 > high - low ? ticks.slice(0, 1) : ticks)));
  }

  notes() {
    const { warnings, skipped, failed, differences, results, reported } = this.evaluation;
    const ways = new Set(Object.values(results).flat().map((result) => result.details.interval).filter((way) => way)
      .map((way) => `${way.by} over ${way.units} ${way.over}`));
    const lines = [
      ways.size ? `In brackets: 95 % intervals, ${[...ways].join("; ")}.` : null,
      differences.length ? "Differences are paired by prompt and seed; “better” and “worse” where the whole interval is on one side of 0." : null,
      reported ? `Reported: ${reported.source}` : null,
      ...warnings.map((line) => `Warning: ${line}`),
      ...Object.entries(failed).map(([name, reason]) => `No value: ${name}: ${reason}`),
      ...Object.entries(skipped).map(([name, reason]) => `Skipped: ${name}: ${reason}`),
    ];
    return element("ul", { class: "notes" }, ...lines.filter((line) => line).map((line) => element("li", {}, line)));
  }
}
