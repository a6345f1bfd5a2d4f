"use strict";
// What the pointer is at, beside it. Without this the charts are the same pictures, with a table behind each.
const runs = JSON.parse(document.getElementById("runs").textContent);
for (const chart of document.querySelectorAll(".chart")) {
  const said = JSON.parse(chart.querySelector("script").textContent);
  const plot = chart.querySelector(".plot");
  const made = [];

  const add = (kind, parent = plot) => {
    const element = document.createElement("div");
    element.className = kind;
    if (parent === plot) made.push(element);
    return parent.appendChild(element);
  };
  const clear = () => { while (made.length) made.pop().remove(); };
  const across = x => 100 * (x - said.x[0]) / (said.x[1] - said.x[0]);
  const down = y => {
    const [low, high, at] = said.log ? [...said.y, y].map(Math.log10) : [...said.y, y];
    return 100 * (1 - (at - low) / (high - low));
  };
  const shown = (value, kind) => {
    if (kind === "usd") return "$" + (value >= 1 ? value.toFixed(2) : value.toPrecision(3));
    if (kind === "share") return (100 * value).toFixed(1) + " %";
    if (kind === "count") return Math.round(value).toLocaleString("en");
    if (kind === "seconds") {
      const whole = Math.round(value), two = number => String(number).padStart(2, "0");
      if (value < 60) return value.toFixed(1) + " s";
      if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
      return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole % 3600 / 60))} min`;
    }
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  // the point of a series that is nearest to x; its points ascend
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
  };

  const point = event => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    clear();
    if (share < -0.02 || share > 1.02) return;
    const at = said.x[0] + share * (said.x[1] - said.x[0]);
    const there = said.series
      .filter(series => series.points.length && (document.getElementById(`show-${series.run}`)?.checked ?? true))
      .map(series => ({ ...series, point: nearest(series.points, at) }));
    if (!there.length) return;
    const x = there.map(series => series.point[0]).reduce((a, b) => Math.abs(b - at) < Math.abs(a - at) ? b : a);
    add("rule").style.left = across(x) + "%";
    const tip = add("tip");
    add("where", tip).textContent = `${said.label} ${shown(x, said.kinds[0])}`;
    for (const series of there) {
      const [own, y] = series.point;
      // a run that has nothing near there (it ended before) says nothing
      if (Math.abs(across(own) - across(x)) > 2) continue;
      const { name, colour } = runs[series.run];
      const dot = add(`dot ${colour}`);
      dot.style.left = across(own) + "%";
      dot.style.top = down(y) + "%";
      const row = add("row", tip);
      if (runs.length > 1) {
        add(`swatch ${colour}`, row);
        row.append(name);
      }
      add("number", row).textContent = shown(y, said.kinds[1]);
    }
    const left = across(x) / 100 * box.width;
    const beside = left + 12 + tip.offsetWidth <= box.width + 8 ? left + 12 : left - 12 - tip.offsetWidth;
    tip.style.left = Math.max(beside, -40) + "px";
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", clear);
}
