(() => {
  "use strict";

  // ---- cards: filtered by task or by words
  document.querySelectorAll(".filtered").forEach((figure) => {
    const cards = [...figure.querySelectorAll("article")];
    figure.addEventListener("input", () => {
      const task = figure.querySelector("[name=task]:checked")?.value;
      const words = (figure.querySelector("[type=search]")?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      cards.forEach((card) => {
        card.hidden = (task && card.dataset.task !== task) || !words.every((word) => card.dataset.text.includes(word));
      });
      const count = figure.querySelector("output");
      if (count) count.textContent = `${cards.filter((card) => !card.hidden).length} shown`;
    });
  });

  // ---- records: pointing at a question shows the places that it and its answer name, and only those
  document.querySelectorAll(".talk li").forEach((turn) => {
    const point = (on) => turn.closest("article").querySelectorAll("svg").forEach((svg) => {
      const own = svg.querySelectorAll(`polygon[data-turn="${turn.dataset.turn}"]`);
      svg.classList.toggle("point", on && own.length > 0);
      own.forEach((shape) => shape.classList.toggle("on", on));
    });
    turn.addEventListener("mouseenter", () => point(true));
    turn.addEventListener("mouseleave", () => point(false));
  });

  // ---- attention: a plane is decoded when it is first looked at
  const clamp = (value) => Math.min(0.9999, Math.max(0, value));
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const heatTable = (stops) => Array.from({ length: 256 }, (_, i) => {
    const place = i / 255 * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(place));
    return stops[k].map((from, c) => Math.round(from + (stops[k + 1][c] - from) * (place - k)));
  });
  document.querySelectorAll(".attention").forEach((figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent), colours = heatTable(data.heat);
    const panels = [...figure.querySelectorAll(".panel")], thumbs = [...figure.querySelectorAll(".thumbs button")];
    const slider = figure.querySelector(".layer"), head = figure.querySelector(".head");
    const smooth = figure.querySelector(".smooth");
    let image = 0, at = data.start;
    figure.querySelector(".heat i").style.background =
      `linear-gradient(90deg, ${data.heat.map((c) => `rgb(${c})`).join(",")})`;

    const paint = (panel, backbone) => {
      const [rows, columns] = backbone.grid, count = rows * columns;
      const column = Math.floor(at[0] * columns), row = Math.floor(at[1] * rows), query = row * columns + column;
      const planes = backbone.maps[image][Number(slider.value)];
      const plane = planes[Math.min(head ? Number(head.value) : 0, planes.length - 1)];
      plane.rows ??= bytes(plane.q);
      plane.most ??= new Float32Array(bytes(plane.m).buffer);
      const small = document.createElement("canvas");
      small.width = columns;
      small.height = rows;
      const pixels = small.getContext("2d").createImageData(columns, rows);
      let total = 0, reach = 0;
      plane.rows.subarray(query * count, (query + 1) * count).forEach((value, k) => {
        pixels.data.set([...colours[value], Math.round(255 * 0.92 * (value / 255) ** 0.6)], 4 * k);
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
      const peak = (plane.most[query] * count).toFixed(1), mean = total ? (reach / total).toFixed(1) : "–";
      panel.querySelector(".readout").textContent = `peak ${peak}× uniform · reach ${mean} patches`;
    };
    const draw = () => {
      data.backbones.forEach((backbone, k) => paint(panels[k], backbone));
      const names = new Set(data.backbones.map((b) => b.layers[Number(slider.value)]));
      figure.querySelector(".layer-name").textContent = [...names].join(" / ");
    };
    const choose = (chosen) => {
      image = chosen;
      thumbs.forEach((button, k) => button.classList.toggle("on", k === image));
      const pictures = panels.map((panel) => panel.querySelector("img"));
      pictures.forEach((picture) => { picture.src = thumbs[image].querySelector("img").src; });
      Promise.all(pictures.map((picture) => picture.decode())).then(draw, draw);
    };
    panels.forEach((panel) => {
      const stack = panel.querySelector(".stack");
      const move = (event) => {
        const box = stack.getBoundingClientRect();
        at = [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
        draw();
      };
      stack.addEventListener("pointerdown", (event) => { stack.setPointerCapture(event.pointerId); move(event); });
      stack.addEventListener("pointermove", (event) => { if (event.buttons) move(event); });
      stack.addEventListener("dragstart", (event) => event.preventDefault());
    });
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step || event.target !== figure) return;
      event.preventDefault();
      const [rows, columns] = data.backbones[0].grid;
      at = [clamp(at[0] + step[0] / columns), clamp(at[1] + step[1] / rows)];
      draw();
    });
    thumbs.forEach((button, k) => button.addEventListener("click", () => choose(k)));
    [slider, head, smooth].forEach((control) => control && control.addEventListener("input", draw));
    addEventListener("resize", draw);
    choose(0);
  });
})();
