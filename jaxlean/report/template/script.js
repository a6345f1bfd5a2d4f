"use strict";
// What the pointer is at, beside it, or the arrow keys. Without this the charts are the same pictures, with a table
// behind each.
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

  const shownSeries = () => said.series
    .filter(series => series.points.length && (document.getElementById(`show-${series.run}`)?.checked ?? true));
  let place = null;  // along x, what is told of
  const tell = at => {
    clear();
    const there = shownSeries().map(series => ({ ...series, point: nearest(series.points, at) }));
    if (!there.length) return "";
    const x = place = there.map(series => series.point[0]).reduce((a, b) => Math.abs(b - at) < Math.abs(a - at) ? b : a);
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
    const width = plot.clientWidth, left = across(x) / 100 * width;
    const beside = left + 12 + tip.offsetWidth <= width + 8 ? left + 12 : left - 12 - tip.offsetWidth;
    tip.style.left = Math.max(beside, -40) + "px";
    const words = row => [...row.childNodes].map(node => node.textContent).filter(Boolean).join(" ");
    return [...tip.children].map(words).join(", ");
  };
  const point = event => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    if (share < -0.02 || share > 1.02) clear();
    else tell(said.x[0] + share * (said.x[1] - said.x[0]));
  };
  const key = event => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") clear();
    if (steps === undefined) return;
    event.preventDefault();
    const all = [...new Set(shownSeries().flatMap(series => series.points.map(each => each[0])))].sort((a, b) => a - b);
    if (!all.length) return;
    const now = place === null ? (steps > 0 ? -1 : all.length) : all.indexOf(place);
    document.getElementById("said").textContent = tell(all[Math.min(Math.max(now + steps, 0), all.length - 1)]);
  };
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", chart.querySelector("h3").textContent + ": arrow keys tell the values");
  plot.addEventListener("keydown", key);
  plot.addEventListener("blur", clear);
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", clear);
}
