(() => {
  "use strict";
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const read = (figure) => JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  document.querySelector(".theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  });

  // ---- table of contents: mark the section that is being read
  const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.hash.slice(1), a]));
  const sections = [...document.querySelectorAll("main section")];
  const mark = () => {
    let here = sections[0];
    for (const section of sections) if (section.getBoundingClientRect().top < innerHeight * 0.3) here = section;
    if (innerHeight + scrollY > root.scrollHeight - 4) here = sections[sections.length - 1];
    links.forEach((link, id) => link.classList.toggle("here", Boolean(here) && id === here.id));
  };
  addEventListener("scroll", mark, { passive: true });
  mark();

  // ---- tooltips
  const number = (v) => {
    if (v < 0) return `−${number(-v)}`;
    const size = Math.abs(v);
    if (v !== 0 && (size < 1e-3 || size >= 1e7)) return v.toExponential(2);
    if (Number.isInteger(v)) return v.toLocaleString("en");
    return size >= 1000 ? Math.round(v).toLocaleString("en") : String(Number(v.toPrecision(4)));
  };
  const showTip = (event, lines) => {
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const x = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 14 : event.clientX + 16;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${clamp(event.clientY - box.height / 2, 4, innerHeight - box.height - 4)}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const line = (text, colour) => {
    const div = document.createElement("div");
    if (colour !== undefined) {
      const dot = document.createElement("i");
      dot.style.background = `var(--c${colour % 7})`;
      div.append(dot);
    }
    div.append(text);
    return div;
  };
  document.querySelectorAll("[data-tip]").forEach((row) => {
    row.addEventListener("pointermove", (event) => showTip(event, [line(row.dataset.tip)]));
    row.addEventListener("pointerleave", hideTip);
  });

  // ---- line charts: read all curves at one x
  const nearest = (values, wanted) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle; else high = middle;
    }
    return wanted - values[low] < values[high] - wanted ? low : high;
  };
  document.querySelectorAll(".plot").forEach((plot) => {
    if (!plot.querySelector("script")) return;
    const chart = read(plot), svg = plot.querySelector("svg"), cursor = svg.querySelector(".cursor");
    const [left, , width] = chart.plot;
    svg.addEventListener("pointermove", (event) => {
      if (!chart.series.length) return;
      const box = svg.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      const wanted = chart.x[0] + clamp((at - left) / width, 0, 1) * (chart.x[1] - chart.x[0]);
      const first = chart.series[0], x = first.x[nearest(first.x, wanted)];
      const place = left + (x - chart.x[0]) / (chart.x[1] - chart.x[0]) * width;
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.style.visibility = "visible";
      const rows = chart.series.map((s) => line(`${s.name}  ${number(s.y[nearest(s.x, x)])}`, s.colour));
      showTip(event, [line(`${chart.label} ${number(x)}`), ...rows]);
    });
    svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; hideTip(); });
  });

  // ---- overlays and filters
  document.querySelectorAll("[data-toggle]").forEach((box) => {
    box.addEventListener("change", () => box.closest("figure").classList.toggle(box.dataset.toggle, !box.checked));
  });
  document.querySelectorAll(".samples").forEach((figure) => {
    const chips = [...figure.querySelectorAll(".chip")];
    chips.forEach((chip) => chip.addEventListener("click", () => {
      chips.forEach((other) => other.classList.toggle("on", other === chip));
      figure.querySelectorAll(".sample").forEach((card) => {
        card.hidden = chip.dataset.task !== "" && card.dataset.task !== chip.dataset.task;
      });
    }));
  });

  // ---- attention: decode a plane when it is first looked at
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const decode = (plane) => {
    plane.rows ??= bytes(plane.q);
    plane.most ??= new Float32Array(bytes(plane.m).buffer);
    return plane;
  };
  const heatTable = (stops) => Array.from({ length: 256 }, (_, i) => {
    const place = i / 255 * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(place)), t = place - k;
    return stops[k].map((from, c) => Math.round(from + (stops[k + 1][c] - from) * t));
  });
  document.querySelectorAll(".attention").forEach((figure) => {
    const data = read(figure), colours = heatTable(data.heat);
    const panels = [...figure.querySelectorAll(".panel")];
    const slider = figure.querySelector(".layer"), head = figure.querySelector(".head");
    const smooth = figure.querySelector(".smooth"), thumbs = [...figure.querySelectorAll(".thumbs button")];
    const state = { image: 0, at: data.start };
    figure.querySelector(".heat i").style.background =
      `linear-gradient(90deg, ${data.heat.map((c) => `rgb(${c})`).join(",")})`;

    const paint = (panel, backbone) => {
      const [rows, columns] = backbone.grid, count = rows * columns;
      const column = clamp(Math.floor(state.at[0] * columns), 0, columns - 1);
      const row = clamp(Math.floor(state.at[1] * rows), 0, rows - 1);
      const planes = backbone.maps[state.image][Number(slider.value)];
      const plane = decode(planes[Math.min(head ? Number(head.value) : 0, planes.length - 1)]);
      const query = row * columns + column;
      const map = plane.rows.subarray(query * count, (query + 1) * count), most = plane.most[query];
      const small = document.createElement("canvas");
      small.width = columns;
      small.height = rows;
      const pixels = small.getContext("2d").createImageData(columns, rows);
      let total = 0, reach = 0;
      map.forEach((value, k) => {
        const [r, g, b] = colours[value];
        pixels.data.set([r, g, b, Math.round(255 * 0.92 * (value / 255) ** 0.6)], 4 * k);
        total += value;
        reach += value * Math.hypot(Math.floor(k / columns) - row, k % columns - column);
      });
      small.getContext("2d").putImageData(pixels, 0, 0);
      const canvas = panel.querySelector("canvas"), box = canvas.getBoundingClientRect();
      const density = Math.min(2, devicePixelRatio || 1);
      canvas.width = Math.max(columns, Math.round(box.width * density));
      canvas.height = Math.max(rows, Math.round(box.height * density));
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = smooth.checked;
      context.imageSmoothingQuality = "high";
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
      Object.assign(panel.querySelector(".query").style, {
        left: `${100 * column / columns}%`, top: `${100 * row / rows}%`,
        width: `${100 / columns}%`, height: `${100 / rows}%`,
      });
      const peak = (most * count).toFixed(1), mean = total ? (reach / total).toFixed(1) : "–";
      panel.querySelector(".readout").textContent = `peak ${peak}× uniform · reach ${mean} patches`;
    };
    const draw = () => {
      data.backbones.forEach((backbone, k) => paint(panels[k], backbone));
      const names = new Set(data.backbones.map((b) => b.layers[Number(slider.value)]));
      figure.querySelector(".layer-name").textContent = [...names].join(" / ");
    };
    const choose = (image) => {
      state.image = image;
      thumbs.forEach((button, k) => button.classList.toggle("on", k === image));
      const address = thumbs[image].querySelector("img").src;
      panels.forEach((panel) => { panel.querySelector("img").src = address; });
      return Promise.all(panels.map((panel) => panel.querySelector("img").decode())).then(draw, draw);
    };
    panels.forEach((panel) => {
      const stack = panel.querySelector(".stack");
      const move = (event) => {
        const box = stack.getBoundingClientRect();
        state.at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
          .map((v) => clamp(v, 0, 0.9999));
        draw();
      };
      stack.addEventListener("pointerdown", (event) => { stack.setPointerCapture(event.pointerId); move(event); });
      stack.addEventListener("pointermove", (event) => { if (event.buttons) move(event); });
      panel.querySelector("img").addEventListener("dragstart", (event) => event.preventDefault());
    });
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step || event.target !== figure) return;
      event.preventDefault();
      const [rows, columns] = data.backbones[0].grid;
      state.at = [clamp(state.at[0] + step[0] / columns, 0, 0.9999), clamp(state.at[1] + step[1] / rows, 0, 0.9999)];
      draw();
    });
    thumbs.forEach((button, k) => button.addEventListener("click", () => choose(k)));
    [slider, head, smooth].forEach((control) => control && control.addEventListener("input", draw));
    addEventListener("resize", draw);
    choose(0);
  });
})();
