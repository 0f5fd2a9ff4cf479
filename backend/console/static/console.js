// The console's own script: draws plots, and keeps a page up to date while something happens.
// Text from the server becomes text nodes; markup comes only from whole pages that the server escaped.
"use strict";

(() => {
  const drawn = new Map();

  // Plots

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  const COLOURS = ["--accent", "--second", "--third", "--fourth", "--good", "--wrong"];
  const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]];

  function percent(value) {
    return value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %";
  }

  function plain(value) {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toPrecision(3);
  }

  function options(told, width) {
    const axis = (share, name) => ({
      stroke: colour("--soft"),
      font: "12px " + colour("--sans"),
      labelFont: "12px " + colour("--sans"),
      label: name,
      labelSize: 20,
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      values: (_, ticks) => ticks.map((tick) => (share ? Math.round(100 * tick) + " %" : plain(tick))),
    });
    const range = (wanted) => (wanted ? () => wanted : undefined);
    return {
      width,
      height: 240,
      padding: [10, 24, 0, 0],
      cursor: { y: false, drag: { x: false, y: false } },
      legend: { live: true },
      scales: {
        x: { time: false, range: range(told.x_range) },
        y: { range: range(told.y_range) },
      },
      axes: [{ ...axis(told.x_share, told.x_name), size: 32 }, { ...axis(told.y_share, told.y_name), size: 58 }],
      series: [
        { label: told.x_name, value: (_, value) => (told.x_share ? percent(value) : plain(value)) },
        ...told.series.map((one, at) => ({
          label: one.name,
          stroke: one.soft ? colour("--line-strong") : colour(COLOURS[at % COLOURS.length]),
          width: one.soft ? 1 : 2,
          dash: one.dashed ? [4, 4] : one.soft ? [] : DASHES[Math.floor(at / COLOURS.length) % DASHES.length],
          points: { show: one.points || told.x.length < 3, size: 6 },
          spanGaps: true,
          value: (_, value) => (told.y_share ? percent(value) : plain(value)),
        })),
      ],
    };
  }

  function draw(figure, told) {
    const place = figure.querySelector(".plot");
    const before = drawn.get(figure);
    if (before) before.plot.destroy();
    const width = Math.max(220, place.clientWidth);
    const data = [told.x, ...told.series.map((one) => one.values)];
    drawn.set(figure, { told, plot: new uPlot(options(told, width), data, place) });
  }

  function redraw(figure, told) {
    const before = drawn.get(figure);
    const names = (some) => some.series.map((one) => one.name).join("\n");
    if (before && names(before.told) === names(told) && (told.x.length < 3) === (before.told.x.length < 3)) {
      before.told = told;
      before.plot.setData([told.x, ...told.series.map((one) => one.values)]);
    } else {
      draw(figure, told);
    }
    const body = figure.querySelector("tbody");
    if (!body || !figure.querySelector("details").open) return;
    body.replaceChildren(...told.x.map((x, at) => {
      const row = document.createElement("tr");
      for (const value of [x, ...told.series.map((one) => one.values[at])]) {
        const cell = document.createElement("td");
        cell.className = "number";
        cell.textContent = plain(value);
        row.append(cell);
      }
      return row;
    }));
  }

  function drawAll(root) {
    for (const figure of root.querySelectorAll("[data-chart]")) {
      const data = figure.querySelector('script[type="application/json"]');
      if (data && !drawn.has(figure)) draw(figure, JSON.parse(data.textContent));
    }
    for (const figure of drawn.keys()) if (!figure.isConnected) drawn.delete(figure);
  }

  let late = 0;
  window.addEventListener("resize", () => {
    clearTimeout(late);
    late = setTimeout(() => {
      for (const [figure, one] of drawn) {
        one.plot.setSize({ width: Math.max(220, figure.querySelector(".plot").clientWidth), height: 240 });
      }
    }, 120);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [figure, one] of drawn) draw(figure, one.told);
  });

  // Pages that stay up to date: <main data-live="address of the state">. In it
  //   data-text="name"        shows the state's text of that name
  //   data-value="name"       is a <progress> whose value, in percent, the state names
  //   data-when="name"        is shown while that is not empty
  //   data-chart-live="name"  plots it
  //   data-part="name"        is taken from the page anew when the state's revision changes
  //   data-announce           tells a screen reader the state's "announce", when it changes

  function show(root, state) {
    for (const node of root.querySelectorAll("[data-text]")) {
      const text = String(state[node.dataset.text] ?? "");
      if (node.textContent !== text) node.textContent = text;
    }
    for (const node of root.querySelectorAll("[data-value]")) {
      const value = state[node.dataset.value];
      if (typeof value === "number") { node.max = 100; node.value = value; }
    }
    for (const node of root.querySelectorAll("[data-when]")) node.hidden = !state[node.dataset.when];
    for (const node of root.querySelectorAll("[data-chart-live]")) {
      const told = state[node.dataset.chartLive];
      node.hidden = !told;
      if (told) redraw(node, told);
    }
    for (const node of root.querySelectorAll("[data-announce]")) {
      const text = state.announce || "";
      if (node.textContent !== text) node.textContent = text;
    }
  }

  async function renew(root) {
    const reply = await fetch(location.href, { headers: { "X-Live": "1" }, credentials: "same-origin" });
    if (!reply.ok) return;
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    for (const part of root.querySelectorAll("[data-part]")) {
      const fresh = page.querySelector('[data-part="' + CSS.escape(part.dataset.part) + '"]');
      if (!fresh || fresh.isEqualNode(part) || part.contains(document.activeElement) && part.querySelector("form input:focus, form textarea:focus")) continue;
      const focused = part.contains(document.activeElement);
      const adopted = document.adoptNode(fresh);
      part.replaceWith(adopted);
      if (focused) { adopted.tabIndex = -1; adopted.focus({ preventScroll: true }); }
    }
    drawAll(document);
  }

  function live(root) {
    let timer = 0;
    let revision = root.dataset.revision;
    let failed = 0;

    async function look() {
      clearTimeout(timer);
      if (document.hidden) return;
      let pause = 5000;
      try {
        const reply = await fetch(root.dataset.live, { headers: { "X-Live": "1" }, credentials: "same-origin" });
        if (reply.status === 401) { location.reload(); return; }
        if (!reply.ok) throw new Error(String(reply.status));
        const state = await reply.json();
        failed = 0;
        pause = state.pause || pause;
        if (state.revision !== revision) {
          await renew(root);
          revision = state.revision;
        }
        show(root, state);
      } catch {
        failed += 1;
        pause = Math.min(30000, 2000 * failed);
      }
      timer = setTimeout(look, pause);
    }

    document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
    look();
  }

  // A menu closes when one goes elsewhere.
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.switch[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.switch[open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });

  drawAll(document);
  const root = document.querySelector("[data-live]");
  if (root) live(root);
})();
